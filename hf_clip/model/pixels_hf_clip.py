"""The original's image transform on Pillow and NumPy: sizes, crop, and the values of pixels.

This module needs no torch.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# Pixels in a resized image, before the crop: 1 GiB in Pillow. It admits sides up to 5349:1 at 224, 1337:1 at 448.
MAX_RESIZED_PIXELS = 2**28


def short_side_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Compute width and height with a short side of `short`; the long side is rounded down, as in torchvision."""
    long = int(short * max(width, height) / min(width, height))
    return (short, long) if width <= height else (long, short)


def check_resized(width: int, height: int, new_width: int, new_height: int) -> None:
    """Raise ValueError for an image that would have more than `MAX_RESIZED_PIXELS` on its way to a new size."""
    if new_width * max(new_height, height) > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"{width}x{height} pixels would become {new_width}x{new_height}, more than {MAX_RESIZED_PIXELS:,}: "
            "crop the image first"
        )


def check_not_empty(shape: tuple[int, ...]) -> None:
    """Raise ValueError for an image without pixels."""
    if 0 in shape:
        raise ValueError(f"an image of size {'x'.join(map(str, shape))} has no pixels")


def transform_image(
    image: Image.Image,
    resized_size: tuple[int, int] | None,
    resample: int | None,
    crop_size: tuple[int, int] | None,
    convert_rgb: bool,
) -> np.ndarray:
    """Resize, crop and convert an image, in this order and in its own mode until then, as the original does.

    Args:
        image: The image.
        resized_size: Width and height to resize to; None leaves the size.
        resample: Pillow's filter.
        crop_size: Height and width of the crop; None leaves all.
        convert_rgb: Convert to RGB at the end.

    Returns:
        The levels, (C, H, W), 8 bits unless the image has more and stays in its mode.
    """
    if resized_size not in (None, image.size):
        # the whole image: its size decides which direction Pillow resizes first, so no part comes out alike
        image = image.resize(resized_size, resample)
    if crop_size is not None:
        image = center_crop(image, *crop_size)
    if convert_rgb and image.mode != "RGB":
        image = image.convert("RGB")
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Crop the center, half a pixel rounded to even; a side that is too short is filled up with 0 on both ends."""
    if not (height > 0 and width > 0 and height * width <= MAX_RESIZED_PIXELS):
        raise ValueError(
            f"a crop of {width}x{height} pixels: give sides from 1, and at most {MAX_RESIZED_PIXELS:,} in all"
        )
    missing = max(0, width - image.width), max(0, height - image.height)
    if any(missing):
        border = (missing[0] // 2, missing[1] // 2, (missing[0] + 1) // 2, (missing[1] + 1) // 2)
        palette = image.getpalette() if image.mode == "P" else None
        image = ImageOps.expand(image, border, 0 if len(image.getbands()) == 1 else (0,) * len(image.getbands()))
        if palette is not None:
            image.putpalette(palette)
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))


def check_scales(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless pixel values stay finite by the settings, of which some may be missing."""
    for name in ("rescale_factor", "image_mean", "image_std"):
        if name not in settings:
            continue
        numbers = np.asarray(settings[name])
        with np.errstate(all="ignore"):
            valid = numbers.dtype.kind in "iuf" and np.isfinite(numbers.astype(np.float32)).all()
            if valid and name != "image_mean":  # divided by
                valid = np.isfinite(1 / numbers.astype(np.float32)).all()
        if not valid:
            raise ValueError(f"{name} is {settings[name]!r:.60}: give numbers by which pixel values stay finite")


def write_values(
    values: np.ndarray,
    levels: np.ndarray,
    rescale_factor: float | None,
    mean: float | tuple[float, ...] | None,
    std: float | tuple[float, ...] | None,
) -> None:
    """Fill `values` from `levels`, both (C, H, W), by the float32 operations of ToTensor and Normalize."""
    np.copyto(values, levels)
    if rescale_factor is not None:
        values /= np.float32(1 / rescale_factor)  # x / 255 and x * (1 / 255) round differently
    if mean is not None:
        shift, scale = (np.float32(value).reshape(-1, 1, 1) for value in (mean, std))
        if {len(shift), len(scale)} - {1, len(values)}:
            raise ValueError(
                f"image_mean and image_std have {len(shift)} and {len(scale)} values for {len(values)} channels"
            )
        values -= shift
        values /= scale


@contextmanager
def parallel_map(jobs: int, threads: int) -> Iterator[Callable]:
    """Yield a `map` on as many threads as `jobs` can use; Pillow and NumPy release the GIL.

    The pool lives as long as the batch: one kept for longer would hang in a forked process.
    """
    threads = min(jobs, threads)
    if threads < 2:
        yield map
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map


__all__ = [
    "MAX_RESIZED_PIXELS",
    "OPENAI_MEAN",
    "OPENAI_STD",
    "center_crop",
    "check_not_empty",
    "check_resized",
    "check_scales",
    "parallel_map",
    "short_side_size",
    "transform_image",
    "write_values",
]
