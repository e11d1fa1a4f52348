"""`HFCLIPProcessor`: an image processor and a tokenizer behind one call."""

import os

try:
    from transformers import (
        BaseImageProcessor,
        BatchFeature,
        CLIPImageProcessor,
        CLIPImageProcessorPil,
        CLIPTokenizer,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )
except ImportError as error:
    from .requirement_hf_clip import older_transformers

    raise older_transformers() from error
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import cached_file

from .batches_hf_clip import HFCLIPBatchFeature
from .configuration_hf_clip import check_is_folder
from .image_processing_hf_clip import HFCLIPImageProcessor
from .tokenization_hf_clip import HFCLIPTokenizer

# the files of each part, of which a folder holds at least one, and the class that loads the part alone
FILES = {
    "tokenizer": (["tokenizer_config.json", "tokenizer.json", "vocab.json"], "AutoTokenizer"),
    "image processor": (["preprocessor_config.json", "processor_config.json"], "AutoImageProcessor"),
}
# arguments of `from_pretrained` that locate files
WHERE = ("cache_dir", "local_files_only", "revision", "subfolder", "token")


class HFCLIPProcessor(ProcessorMixin):
    """Prepare images, texts, or both at once for CLIP.

    Args:
        image_processor: Such as `HFCLIPImageProcessor`.
        tokenizer: Such as `HFCLIPTokenizer`.

    Raises:
        TypeError: A part is of another kind.

    Example:
        >>> processor = HFCLIPProcessor.from_pretrained("clip-rn50")
        >>> inputs = processor(images=["photo.jpg"], text=["a cat", "a dog"], return_tensors="pt")
    """

    _auto_class = "AutoProcessor"

    def __init__(self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "HFCLIPProcessor":
        """Load the parts that a folder names; those of a stock CLIP folder become the exact ones, with its settings.

        Raises:
            OSError: If the folder holds a tokenizer alone or an image processor alone.
        """
        check_is_folder(pretrained_model_name_or_path)
        try:
            processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except Exception as error:
            where = {name: kwargs[name] for name in WHERE if name in kwargs}
            _check_parts(pretrained_model_name_or_path, where, error)
            raise
        if isinstance(processor.image_processor, CLIPImageProcessor | CLIPImageProcessorPil):
            processor.image_processor = HFCLIPImageProcessor.from_dict(processor.image_processor.to_dict())
        if isinstance(processor.tokenizer, CLIPTokenizer):
            processor.tokenizer = HFCLIPTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return processor

    def save_pretrained(self, *args, **kwargs) -> list[str]:
        """Save the parts; the place of the code, which transformers adds to each, is removed again."""
        files = super().save_pretrained(*args, **kwargs)
        for part in (self, self.image_processor):
            part.__dict__.pop("auto_map", None)
        return files

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Pass files on unopened: the image processor opens, crops and closes one at a time."""
        return images, text, videos, audio

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Check nothing: the tokenizer and the image processor do, and name the text or the image."""

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """Make `pixel_values` (B, 3, H, W) of `images` and `input_ids` (N, longest) of `text`; B and N are independent.

        Options go to the part that knows them, or by name in `images_kwargs=` and `text_kwargs=`. Raises ValueError
        where neither images nor text are given, or either is an empty list.
        """
        if images is None and text is None:
            raise ValueError("give images, text, or both")
        if isinstance(text, list | tuple) and not text:
            raise ValueError("text is empty: give at least one text")
        return HFCLIPBatchFeature(super().__call__(images=images, text=text, **kwargs))


def _check_parts(folder: str | os.PathLike, where: dict, error: Exception) -> None:
    """Raise OSError, because of `error`, if `folder` holds one part alone."""

    def holds(file: str) -> bool:
        found = cached_file(
            folder,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **where,
        )
        return found is not None

    parts = [part for part, (files, _) in FILES.items() if any(map(holds, files))]
    if len(parts) == 1:
        [part], [missing] = parts, FILES.keys() - parts
        raise OSError(f"{folder} has no {missing}: load its {part} with {FILES[part][1]}") from error


__all__ = ["HFCLIPProcessor"]
