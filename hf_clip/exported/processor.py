"""The tokenizer and the image processor of an exported folder, without torch: the original's token ids and pixels."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from ..model.bpe_hf_clip import BOS_TOKEN, EOS_TOKEN, WORDS_AND_SPECIAL, ChunkIds, pack
from ..model.image_reading_hf_clip import is_image_path, naming, open_image
from ..model.packed_texts_hf_clip import (
    MODEL_MAX_LENGTH,
    PAD_TOKEN,
    PackedTexts,
    TextTooLongError,
    describe_too_long,
    shorten,
)
from ..model.pixels_hf_clip import (
    OPENAI_MEAN,
    OPENAI_STD,
    check_not_empty,
    check_resized,
    check_scales,
    parallel_map,
    short_side_size,
    transform_image,
    write_values,
)
from ..utils.objects import check_fields, parse_object
from ..utils.threads import thread_count
from .manifest import read_manifest

STEPS = ("do_resize", "do_center_crop", "do_convert_rgb", "do_rescale", "do_normalize")
MAX_SIDE = 1 << 14
UNLIMITED = 10**9  # what transformers writes for a tokenizer without a limit is larger


class ExportedTokenizer:
    """Tokenize texts as HFCLIPTokenizer does: the ids of the original's `clip.tokenize` for every `str`.

    Args:
        folder: A folder with tokenizer.json and tokenizer_config.json.

    Raises:
        ValueError: There is no tokenizer, it is not CLIP's, or it has added tokens.

    Example:
        >>> tokenizer = ExportedTokenizer("clip-rn50-onnx")
        >>> ids = tokenizer(["a cat", "two dogs"], return_tensors="np")["input_ids"]  # (2, longest)
    """

    def __init__(self, folder: str | os.PathLike):
        file = Path(folder, "tokenizer.json")
        try:
            backend = Tokenizer.from_file(str(file))
        except Exception as error:  # the class that `tokenizers` raises
            raise ValueError(f"{file} cannot be read ({error}): copy the whole folder, or export again") from error
        ids = {token: backend.token_to_id(token) for token in (BOS_TOKEN, EOS_TOKEN, PAD_TOKEN)}
        known = {token: number for token, number in ids.items() if number is not None}
        if missing := ids.keys() - known.keys():
            raise ValueError(f"{file} is not a tokenizer of CLIP: it lacks {', '.join(sorted(missing))}")
        self.pad_token_id = known.pop(PAD_TOKEN)
        if added := {token.content for token in backend.get_added_tokens_decoder().values()} - known.keys():
            raise ValueError(f"{file} has added tokens, such as {min(added)}: load the folder with load_clip and torch")
        self.model_max_length = _limit(_read_json(Path(folder, "tokenizer_config.json")))
        self._start, self._end = pack([known[BOS_TOKEN]]), pack([known[EOS_TOKEN]])
        self._chunk_ids = ChunkIds(backend.model, WORDS_AND_SPECIAL, known)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | Literal["longest", "max_length"] = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Literal["np"] | None = None,
        verbose: bool = True,
    ) -> dict[str, Any]:
        """Return the `input_ids` of one or several texts.

        Args:
            text: The texts.
            padding: Pad lists to the longest of them or, by "max_length", to `max_length`; arrays always are padded.
            truncation: Cut texts to `max_length`; the end token stays.
            max_length: The largest number of tokens (default: what the model reads).
            return_tensors: "np" for an array (N, longest) int64, None for lists.
            verbose: Accepted for the callers of transformers' tokenizers: nothing is ever logged.

        Raises:
            TextTooLongError: An array is asked for, and a text has more tokens than fit.
            ValueError: A text is not a `str`.
        """
        texts = [text] if isinstance(text, str) else list(text)
        for place, each in enumerate(texts):
            if not isinstance(each, str):
                raise ValueError(f"a text must be a str (a batch: a list of those); text {place} is {shorten(each)}")
        if return_tensors not in (None, "np"):
            raise ValueError(f"return_tensors is {return_tensors!r}: this tokenizer gives np, or lists for None")
        limit = max_length or self.model_max_length
        packed = PackedTexts.encode(texts, self._chunk_ids, self._start, self._end)
        if truncation:
            packed = packed.cut(limit)
        elif return_tensors and (found := describe_too_long(texts, packed.lengths, limit)):
            message, first = found
            advice = f"over max_length={limit}: pass truncation=True to cut it"
            raise TextTooLongError(message, advice, first, int(packed.lengths[first]), limit)
        width = limit if padding == "max_length" else packed.longest if padding or return_tensors else 0
        if return_tensors:
            return {"input_ids": packed.matrix(width, self.pad_token_id)}
        ids = packed.lists(width, self.pad_token_id)
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def pad(
        self, encoded: Mapping[str, Sequence[Sequence[int]]], return_tensors: Literal["np"] = "np"
    ) -> dict[str, Any]:
        """Return the `input_ids` of texts that are encoded already as an array (N, longest) int64."""
        rows = encoded["input_ids"]
        padded = np.full((len(rows), max(map(len, rows))), self.pad_token_id, np.int64)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        return {"input_ids": padded}


class ExportedImageProcessor:
    """Prepare images as HFCLIPImageProcessor does: the original's pixels, bit for bit with the same Pillow.

    An image is a path, an address, a PIL image, or an array of 8 bits, (H, W), (H, W, 3) or (H, W, 4).

    Args:
        folder: A folder with preprocessor_config.json.

    Raises:
        ValueError: There are no settings, or they name sizes that CLIP's transform does not have.

    Example:
        >>> processor = ExportedImageProcessor("clip-rn50-onnx")
        >>> pixels = processor(["photo.jpg"])["pixel_values"]  # (1, 3, 224, 224)
    """

    def __init__(self, folder: str | os.PathLike):
        file = Path(folder, "preprocessor_config.json")
        settings = _read_json(file)
        size, crop = settings.get("size", {"shortest_edge": 224}), settings.get("crop_size", {})
        try:
            _check_settings(settings, size, crop)
        except ValueError as error:
            raise ValueError(f"{file} does not fit CLIP ({error}): copy the whole folder, or export again") from error
        self._short_side = size.get("shortest_edge")
        self._sides = (size.get("width"), size.get("height"))
        if set(size) not in ({"shortest_edge"}, {"height", "width"}):
            raise ValueError(f"{folder} resizes images to {size}, which needs load_clip and torch")
        self.crop_size = {"height": crop.get("height", 224), "width": crop.get("width", 224)}
        self._steps = {step: bool(settings.get(step, True)) for step in STEPS}
        self.size, self.do_resize = dict(size), self._steps["do_resize"]
        self._resample = settings.get("resample", Image.Resampling.BICUBIC)
        self._factor = settings.get("rescale_factor", 1 / 255)
        self._mean, self._std = settings.get("image_mean", OPENAI_MEAN), settings.get("image_std", OPENAI_STD)

    def __call__(
        self,
        images: Any,
        *,
        return_tensors: Literal["np"] = "np",
        **steps: bool,
    ) -> dict[str, np.ndarray]:
        """Return `pixel_values` of one or several images, which share the cores.

        Args:
            images: An image, or a list of them.
            return_tensors: Accepted for the callers of transformers' processors.
            **steps: Any of `do_resize`, `do_center_crop`, `do_convert_rgb`, `do_rescale` and `do_normalize`, to
                differ from the settings.

        Returns:
            `pixel_values`, float32 (B, 3, crop height, crop width); 8-bit with both steps off.

        Raises:
            OSError: A file cannot be read. All errors name the place of the image and its file.
            TypeError: An input is no image, or there is no such step.
            ValueError: There are no images, or one cannot be prepared.
        """
        if unknown := steps.keys() - self._steps.keys():
            raise TypeError(f"there is no step {min(unknown)}: choose from {', '.join(STEPS)}")
        steps = self._steps | steps
        sources = list(images) if isinstance(images, list | tuple) else [images]
        if not sources:
            raise ValueError("images is empty: give at least one image")
        factor = self._factor if steps["do_rescale"] else None
        mean, std = (self._mean, self._std) if steps["do_normalize"] else (None, None)
        dtype = np.float32 if steps["do_normalize"] or factor is not None else None
        # one job for each object: two threads must not decode the same file
        jobs = {id(source): index for index, source in enumerate(sources)}

        def prepare(index: int) -> np.ndarray:
            with naming(index, sources[index]):
                levels = self._levels(sources[index], steps)
                values = np.empty(levels.shape, dtype or levels.dtype)
                write_values(values, levels, factor, mean, std)
                return values

        with parallel_map(len(jobs), thread_count()) as parallel:
            done = dict(zip(jobs, parallel(prepare, jobs.values()), strict=True))
        rows = [done[id(source)] for source in sources]
        if len({row.shape for row in rows}) > 1:
            raise ValueError("images of several sizes make no array: the settings have do_center_crop off")
        return {"pixel_values": np.stack(rows)}

    def _levels(self, source: Any, steps: Mapping[str, bool]) -> np.ndarray:
        """Return the levels (C, H, W) of an image after all steps on Pillow's side."""
        if is_image_path(source):
            with open_image(source) as opened:
                return self._levels(opened, steps)
        image = _as_image(source)
        check_not_empty(image.size)
        resized = None
        if steps["do_resize"]:
            width, height = image.size
            resized = short_side_size(width, height, self._short_side) if self._short_side else self._sides
            check_resized(width, height, *resized)
        crop = (self.crop_size["height"], self.crop_size["width"]) if steps["do_center_crop"] else None
        return transform_image(image, resized, self._resample, crop, steps["do_convert_rgb"])


class ExportedProcessor:
    """Prepare images and texts for an exported CLIP.

    Args:
        folder: A folder that `export_clip` wrote.

    Example:
        >>> processor = ExportedProcessor("clip-rn50-onnx")
        >>> inputs = processor(images=["photo.jpg"], text=["a cat", "a dog"])
    """

    def __init__(self, folder: str | os.PathLike):
        manifest = read_manifest(folder)
        self.image_processor = ExportedImageProcessor(Path(folder, manifest.image_processor))
        self.tokenizer = ExportedTokenizer(Path(folder, manifest.tokenizer))

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return `pixel_values` (B, 3, H, W) of `images` and `input_ids` (N, longest) of `text`."""
        if images is None and text is None:
            raise ValueError("give images, text, or both")
        prepared = {} if images is None else self.image_processor(images)
        if text is not None:
            prepared |= self.tokenizer([text] if isinstance(text, str) else text, return_tensors="np")
        return prepared


def _as_image(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, np.ndarray):
        raise TypeError(f"an image is a PIL image, an array, a path or a URL, not {type(source).__name__}")
    if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] not in (3, 4)):
        raise ValueError(
            f"an array of {source.dtype} and shape {source.shape} is no image: give 8 bits, "
            "(H, W), (H, W, 3) or (H, W, 4)"
        )
    check_not_empty(source.shape)
    return Image.fromarray(source)


def _check_settings(settings: Mapping[str, Any], size: Any, crop: Any) -> None:
    """Raise ValueError for settings with which no image could be prepared, or none of finite numbers."""
    check_fields({"size": size, "crop_size": crop}, {"size": dict, "crop_size": dict})
    for sides in (size, crop):
        check_fields(sides, dict.fromkeys(sides, int))
        if not all(1 <= side <= MAX_SIDE for side in sides.values()):
            raise ValueError(f"its sides are {sides}")
    if settings.get("resample", Image.Resampling.BICUBIC) not in [*Image.Resampling]:
        raise ValueError(f"its resample is {settings['resample']!r:.60}")
    check_scales(settings)


def _limit(config: Mapping[str, Any]) -> int:
    limit = config.get("model_max_length") or UNLIMITED
    if not isinstance(limit, int | float):
        raise ValueError(f"model_max_length is {limit!r:.60}: export the model again")
    return int(limit) if 0 < limit < UNLIMITED else MODEL_MAX_LENGTH


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return parse_object(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): copy the whole folder, or export again") from error


__all__ = ["ExportedImageProcessor", "ExportedProcessor", "ExportedTokenizer"]
