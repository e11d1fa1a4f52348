"""`HFCLIPProcessor`: an image processor and a tokenizer behind one call."""

import os

from transformers import (
    BaseImageProcessor,
    BatchFeature,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, Unpack

from .image_processing_hf_clip import HFCLIPImageProcessor
from .tokenization_hf_clip import HFCLIPTokenizer


class HFCLIPProcessor(ProcessorMixin):
    """CLIP's preprocessing of images, texts, or both at once."""

    def __init__(self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "HFCLIPProcessor":
        """Load the parts that a folder names; those of a stock CLIP folder become the exact ones, with its settings."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if isinstance(processor.image_processor, CLIPImageProcessor | CLIPImageProcessorPil):
            processor.image_processor = HFCLIPImageProcessor.from_dict(processor.image_processor.to_dict())
        if isinstance(processor.tokenizer, CLIPTokenizer):
            processor.tokenizer = HFCLIPTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return processor

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """`pixel_values` (B, 3, H, W) of `images` and `input_ids` (N, longest) of `text`; B and N are independent.

        Options go to the part that knows them, or by name in `images_kwargs=` and `text_kwargs=`. Raises ValueError
        where neither images nor text are given, or either is an empty list.
        """
        if images is None and text is None:
            raise ValueError("give images, text, or both.")
        if isinstance(text, list | tuple) and not text:
            raise ValueError("text is empty: give at least one.")
        return super().__call__(images=images, text=text, **kwargs)


__all__ = ["HFCLIPProcessor"]
