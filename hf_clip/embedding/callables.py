"""Callables that take a batch as a dict of columns and give one back, for any engine that maps batches."""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import Decode, Exif, ImageRef, ImageTally, UnreadableImageError, draft_side
from ..exported.manifest import is_exported
from ..exported.model import load_exported, precision_for
from ..exported.processor import ExportedProcessor
from ..utils.hardware import default_device
from ..utils.text import first_line
from ..utils.threads import thread_count
from .arrow import SURPRISES, as_objects
from .features import Array, as_batch, features, on_cpu
from .texts import embed_texts

Batch = Mapping[str, Any]
Loaded = tuple[Any, Any]  # a model and its processor


class _Worker:
    """Base of the callables that need a model: it is loaded at the first call, once in each process."""

    def __init__(self, model: str | Loaded, device: str | None, dtype: str, optimize: bool, trust_remote_code: bool):
        self.model, self.device, self.dtype = model, device, dtype
        self.optimize, self.trust_remote_code = optimize, trust_remote_code
        self._loaded: Loaded | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}  # a copy in another process loads a model of its own

    def loaded(self) -> Loaded:
        """Load the model on its device, and its processor."""
        if self._loaded is None:
            if not isinstance(self.model, str):
                self._loaded = self.model
            elif is_exported(self.model):
                precision = precision_for(self.model, self.dtype, self.optimize)
                self._loaded = load_exported(self.model, precision=precision, device=self.device)
            else:
                self._loaded = self._load(self.model)
        return self._loaded

    def _load(self, source: str) -> Loaded:
        import torch

        from ..loading import load_clip

        return load_clip(
            source,
            device=self.device or default_device(),
            dtype=getattr(torch, self.dtype),
            optimize=self.optimize,
            trust_remote_code=self.trust_remote_code,
        )


class ImagePreprocessor:
    """Turn images into pixels on the CPU: decoded, resized and cropped, the original's values as 8 bits.

    Eight bits are a quarter of what the model reads, and travel between workers; `ImageEmbedder` normalizes them.

    Args:
        model: A CLIP's folder or Hub id, or its image processor.
        column: The column of images: bytes, paths, addresses, mappings with `bytes` or
            `path` as `datasets` stores images, PIL images, or arrays. It is left out of the result.
        output: The column of the result: pixels, uint8 (B, 3, H, W).
        workers: Threads; as many as PyTorch's unless given.
        trust_remote_code: Run code that comes with the repository.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.
        decode: "draft" decodes large JPEGs at a fraction of their size, as in `embed_images`.
        allow_schemes: Kinds of addresses that may be read besides http, https and data, such as s3.
        count_surprises: Add the columns `hf_clip:rotated` and `hf_clip:sixteen_bits`, True for images that the model
            sees in another way than people.

    Example:
        >>> dataset.map_batches(ImagePreprocessor("clip-rn50")).map_batches(ImageEmbedder("clip-rn50"))
    """

    def __init__(
        self,
        model: Any,
        column: str = "image",
        output: str = "pixels",
        workers: int | None = None,
        trust_remote_code: bool = False,
        exif: Exif = "ignore",
        decode: Decode = "full",
        allow_schemes: Collection[str] = (),
        count_surprises: bool = False,
    ):
        self.model, self.column, self.output = model, column, output
        self.workers, self.trust_remote_code = workers, trust_remote_code
        self.exif, self.decode = exif, decode
        self.allow_schemes, self.count_surprises = allow_schemes, count_surprises
        self._processor: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_processor": None}

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Return the batch with pixels, and with `error`: why an image has none, else None.

        Args:
            batch: Columns of one length.
        """
        images = batch[self.column]
        tallies = [ImageTally() for _ in images]
        if len(images):
            _ = self.processor  # loaded before there are threads: two that import at once find half a module
        with ThreadPoolExecutor(self.workers or thread_count()) as pool:
            results = list(pool.map(self._pixels, images, range(len(images)), tallies))
        found = [pixels for pixels, _ in results if pixels is not None]
        nothing = np.zeros_like(found[0]) if found else np.zeros(self._empty_shape(), np.uint8)
        earlier = batch.get("error", [None] * len(images))
        return {
            **{name: values for name, values in batch.items() if name != self.column},
            self.output: np.stack([nothing if pixels is None else pixels for pixels, _ in results])
            if results
            else nothing[None][:0],
            "error": as_objects(_first(old, new) for old, (_, new) in zip(earlier, results, strict=True)),
            **(_surprises(tallies) if self.count_surprises else {}),
        }

    @property
    def processor(self) -> Any:
        """The image processor, loaded when it is first needed."""
        if self._processor is None:
            loaded = self.model
            if isinstance(loaded, str) and is_exported(loaded):
                loaded = ExportedProcessor(loaded)
            elif isinstance(loaded, str):
                from transformers import AutoImageProcessor

                from .. import registration  # noqa: F401 (the Auto classes have to know ours)

                loaded = AutoImageProcessor.from_pretrained(loaded, trust_remote_code=self.trust_remote_code)
            self._processor = getattr(loaded, "image_processor", loaded)
        return self._processor

    def _pixels(self, source: Any, number: int, tally: ImageTally) -> tuple[np.ndarray | None, str | None]:
        name = f"images[{number}]"
        try:
            image = ImageRef.of(source, None if isinstance(source, str) and source else name, self.allow_schemes)
            name = image.name[:200]
            side = draft_side(self.processor, self.decode)
            return self._eight_bits(image.open(self.exif, tally, side)), None
        except UnreadableImageError as error:
            return None, first_line(error)
        except Exception as error:  # whatever a processor raises about one image
            return None, f"cannot read {name}: {first_line(error)}"

    def _eight_bits(self, image: Any) -> np.ndarray:
        pixels = self.processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")
        values = np.asarray(pixels["pixel_values"][0])
        if values.dtype != np.uint8:
            raise TypeError(
                f"{type(self.processor).__name__} gives {values.dtype}, not 8 bits: use HFCLIPImageProcessor"
            )
        return values

    def _empty_shape(self) -> tuple[int, int, int]:
        size = self.processor.crop_size
        return (3, size["height"], size["width"])


class ImageEmbedder(_Worker):
    """Embed the pixels that `ImagePreprocessor` gives.

    Every pass through the model has `batch_size` images, filled up with black ones, so an embedding does not depend on
    how the images were divided into batches.

    Args:
        model: A CLIP's folder or Hub id, or a model and its processor.
        column: The column of pixels, uint8 (B, 3, H, W). It is left out of the result.
        output: The column of the result: embeddings, float32 (B, dim); NaN for an image with an `error`.
        batch_size: Images per pass through the model.
        normalize: Scale embeddings to length 1.
        device: Such as cuda:1; a GPU if there is one unless given.
        dtype: The dtype to compute in.
        optimize: Optimize the model for inference.
        trust_remote_code: Run code that comes with the repository.

    Example:
        >>> embed = ImageEmbedder("clip-rn50")
        >>> embed(ImagePreprocessor("clip-rn50")({"image": ["photo.jpg"]}))["embedding"].shape
        (1, 1024)
    """

    def __init__(
        self,
        model: str | Loaded,
        column: str = "pixels",
        output: str = "embedding",
        batch_size: int = 32,
        normalize: bool = True,
        device: str | None = None,
        dtype: str = "float32",
        optimize: bool = False,
        trust_remote_code: bool = False,
    ):
        super().__init__(model, device, dtype, optimize, trust_remote_code)
        self.column, self.output, self.batch_size, self.normalize = column, output, batch_size, normalize
        self._table: Array = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_table": None}

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Return the batch with embeddings in place of pixels.

        Args:
            batch: Columns of one length, with pixels and, where images failed, `error`.
        """
        pixels = np.array(batch[self.column], np.uint8)
        starts = range(0, max(1, len(pixels)), self.batch_size)
        embeds = np.concatenate([self._embed(pixels[start : start + self.batch_size]) for start in starts])
        errors = batch.get("error", [None] * len(embeds))
        embeds[[isinstance(error, str) for error in errors]] = np.nan  # engines turn None into NaN
        return {**{name: values for name, values in batch.items() if name != self.column}, self.output: embeds}

    def _embed(self, pixels: np.ndarray) -> np.ndarray:
        """Embed up to `batch_size` images."""
        model, _ = self.loaded()
        size = getattr(model.config, "vision_config", model.config).image_size
        if pixels.shape[1:] != (3, size, size) and len(pixels):
            raise ValueError(
                f"pixels are {tuple(pixels.shape[1:])}, the model reads (3, {size}, {size}): use the preprocessor of "
                "the same repository"
            )
        filled = np.zeros((self.batch_size, 3, size, size), np.uint8)
        if len(pixels):
            filled[: len(pixels)] = pixels
        inputs = {"pixel_values": self._normalized(as_batch(model, filled))}
        return np.asarray(on_cpu(features(model, "image", inputs, self.normalize)[: len(pixels)]))

    def _normalized(self, pixels: Array) -> Array:
        """Normalize pixels by a table of the processor's own results for 256 levels: the same bits."""
        model, processor = self.loaded()
        if self._table is None:
            self._table = as_batch(model, _table(getattr(processor, "image_processor", processor)))
        if isinstance(pixels, np.ndarray):
            return np.stack([self._table[channel][pixels[:, channel]] for channel in range(3)], 1)
        import torch

        table, pixels = self._table.to(model.device), pixels.to(model.device)
        return torch.stack([table[channel][pixels[:, channel].int()] for channel in range(3)], 1)


class TextEmbedder(_Worker):
    """Embed a column of texts; only the text tower is loaded.

    Args:
        model: A CLIP's folder or Hub id, or a model and its processor.
        column: The column of texts, which stays; texts that are too long are cut off.
        output: The column of the result: embeddings, float32 (B, dim); NaN where there is no text.
        normalize: Scale embeddings to length 1.
        device: Such as cuda:1; a GPU if there is one unless given.
        dtype: The dtype to compute in.
        trust_remote_code: Run code that comes with the repository.

    Example:
        >>> TextEmbedder("clip-rn50")({"text": ["a cat", None]})["text_embedding"].shape
        (2, 1024)
    """

    def __init__(
        self,
        model: str | Loaded,
        column: str = "text",
        output: str = "text_embedding",
        normalize: bool = True,
        device: str | None = None,
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ):
        super().__init__(model, device, dtype, False, trust_remote_code)
        self.column, self.output, self.normalize = column, output, normalize

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Return the batch with embeddings of its texts.

        Args:
            batch: Columns of one length.
        """
        model, tokenizer = self.loaded()
        texts = list(batch[self.column])
        embeds = np.full((len(texts), model.config.projection_dim), np.nan, np.float32)
        known = {place: text for place, text in enumerate(texts) if isinstance(text, str) and text.strip()}
        if known:
            found = embed_texts(model, tokenizer, list(known.values()), normalize=self.normalize, truncation=True)
            embeds[list(known)] = np.asarray(found)
        return {**batch, self.output: embeds}

    def _load(self, source: str) -> Loaded:
        import torch

        from ..loading import load_text_tower

        return load_text_tower(
            source,
            device=self.device or default_device(),
            dtype=getattr(torch, self.dtype),
            trust_remote_code=self.trust_remote_code,
        )


def _first(earlier: Any, error: str | None) -> str | None:
    return earlier if isinstance(earlier, str) else error


def _surprises(tallies: list[ImageTally]) -> dict[str, np.ndarray]:
    counts = [(tally.rotated, tally.sixteen_bits) for tally in tallies]
    return dict(zip(SURPRISES, np.array(counts, bool).reshape(-1, len(SURPRISES)).T, strict=True))


def _table(image_processor: Any) -> np.ndarray:
    """Return the normalized value of each of 256 levels, (3, 256)."""
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2))
    values = image_processor(images=[ramp], do_resize=False, do_center_crop=False, return_tensors="np")["pixel_values"]
    return values[0, :, 0, :]


__all__ = ["ImageEmbedder", "ImagePreprocessor", "TextEmbedder"]
