"""The pixels that a model reads of an image, and the way back from its positions to pixels of the image."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_utils import SizeDict

from ..model.image_processing_hf_clip import _resized_size
from ..model.modeling_hf_clip_resnet import STRIDE

MAX_POSITIONS = 4096  # attention takes memory in their square


@dataclass(frozen=True)
class View:
    """Pixels that a model reads of an image, and the box that they cover in it.

    Args:
        pixel_values: (1, 3, height, width), normalized.
        size: Width and height of the image.
        box: Left, top, right and bottom of the read part, in pixels of the image; it may reach beyond the image.
    """

    pixel_values: torch.Tensor
    size: tuple[int, int]
    box: tuple[float, float, float, float]

    def place(self, maps: torch.Tensor, covered: tuple[float, float, float, float] | None = None) -> torch.Tensor:
        """Resample maps (N, h, w) bilinearly to (N, height, width) of the image; NaN outside `box`.

        The maps cover `box`, or `covered`, beyond which their edges are repeated.
        """
        grid = self._pixels_over(covered or self.box)
        placed = F.grid_sample(maps.float().cpu()[None], grid, padding_mode="border", align_corners=False)[0]
        return placed.where((self._pixels_over(self.box)[0].abs() <= 1).all(-1), torch.nan)

    def _pixels_over(self, box: tuple[float, float, float, float]) -> torch.Tensor:
        """Return the centers of the image's pixels, in -1..1 over `box`: (1, height, width, 2)."""
        (width, height), (left, top, right, bottom) = self.size, box
        x = (torch.arange(width, dtype=torch.float32) + 0.5 - left) / (right - left) * 2 - 1
        y = (torch.arange(height, dtype=torch.float32) + 0.5 - top) / (bottom - top) * 2 - 1
        return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)[None]

    def windows(self, side: int, step: int) -> tuple[torch.Tensor, tuple[int, int], tuple[float, float, float, float]]:
        """Cut windows of `side` pixels, at most `step` apart; edges are repeated by a quarter of a window.

        Returns:
            The windows (rows * columns, 3, side, side), rows and columns, and the box in pixels of the image that a map
            with one value for each window covers.
        """
        (left, top, right, bottom), (height, width) = self.box, self.pixel_values.shape[2:]
        margin = side // 4
        padded = F.pad(self.pixel_values, (margin,) * 4, mode="replicate")
        ys, xs = self._starts(side, step)
        windows = torch.cat([padded[:, :, y : y + side, x : x + side] for y, x in product(ys, xs)])
        (first_x, last_x), (first_y, last_y) = (_cells(starts, side / 2 - margin) for starts in (xs, ys))
        across, down = (right - left) / width, (bottom - top) / height
        covered = (left + first_x * across, top + first_y * down, left + last_x * across, top + last_y * down)
        return windows, (len(ys), len(xs)), covered

    def count_windows(self, side: int, step: int) -> int:
        """Count the windows that `windows` would cut."""
        return math.prod(map(len, self._starts(side, step)))

    def _starts(self, side: int, step: int) -> list[list[int]]:
        return [_spread(length + 2 * (side // 4) - side, step) for length in self.pixel_values.shape[2:]]

    def shifted(self, count: int, stride: int) -> Iterator["View"]:
        """Yield `count`**2 views, shifted by fractions of `stride`, the distance of positions; edges are repeated."""
        yield self
        (left, top, right, bottom), (height, width) = self.box, self.pixel_values.shape[2:]
        across, down = (right - left) / width, (bottom - top) / height  # pixels of the image for one of the view
        shifts = [(place * stride) // count for place in range(count)]
        for x, y in list(product(shifts, shifts))[1:]:
            before, after = (x, y), (x and stride - x, y and stride - y)
            padding = (before[0], after[0], before[1], after[1])
            box = (left - x * across, top - y * down, right + after[0] * across, bottom + after[1] * down)
            yield View(F.pad(self.pixel_values, padding, mode="replicate"), self.size, box)


def view(processor: Any, image: Image.Image, config: Any, whole: bool, scale: float = 1) -> View:
    """Prepare an image as the processor does; with `whole`, without the crop and with sides of whole positions.

    Args:
        processor: A processor or an image processor.
        image: The image.
        config: The configuration of the vision tower.
        whole: Read the image to its edges.
        scale: Read the same part at this many times the resolution, for windows.

    Raises:
        ValueError: With `whole` at scale 1, the sides are so unequal that there are over MAX_POSITIONS positions.
    """
    processor = getattr(processor, "image_processor", processor)
    if whole:
        stride = stride_of(config)
        width, height = (_rounded(scale * config.image_size * side / min(image.size), stride) for side in image.size)
        if scale == 1 and width * height > MAX_POSITIONS * stride**2:
            raise ValueError(
                f"the whole image of {image.width}x{image.height} pixels would be read at {width}x{height}, more than "
                f"{MAX_POSITIONS} positions: crop it, or leave whole off"
            )
        options = {"do_resize": True, "size": {"height": height, "width": width}, "do_center_crop": False}
        pixel_values = processor(images=[image], return_tensors="pt", **options)["pixel_values"]
        return View(pixel_values, image.size, (0, 0, *image.size))
    size, crop_size = _scaled(processor.size, scale), _scaled(processor.crop_size, scale)
    pixel_values = processor(images=[image], return_tensors="pt", size=size, crop_size=crop_size)["pixel_values"]
    resized = _resized_size(image.width, image.height, SizeDict(**size)) if processor.do_resize else image.size
    crop = pixel_values.shape[:1:-1]
    starts = [_start(long, short) for long, short in zip(resized, crop, strict=True)]
    scales = [side / long for side, long in zip(image.size, resized, strict=True)]
    left, top = (start * scale for start, scale in zip(starts, scales, strict=True))
    right, bottom = ((start + side) * scale for start, side, scale in zip(starts, crop, scales, strict=True))
    return View(pixel_values, image.size, (left, top, right, bottom))


def stride_of(config: Any) -> int:
    """Return the distance of two positions of a vision tower in pixels."""
    return STRIDE if config.is_resnet else config.patch_size


def _spread(last: int, step: int) -> list[int]:
    """List evenly spaced integers from 0 to `last`, at most about `step` apart."""
    return torch.linspace(0, last, -(-last // step) + 1).round().int().tolist()


def _cells(starts: list[int], center: float) -> tuple[float, float]:
    """Return the first and the last edge of cells whose centers are `starts` + `center`."""
    half = starts[-1] / (len(starts) - 1) / 2
    return center - half, starts[-1] + center + half


def _scaled(size: Any, scale: float) -> dict[str, int]:
    """Multiply the sides in an image processor's size."""
    return {name: round(side * scale) for name, side in dict(size).items() if side}


def _rounded(side: float, stride: int) -> int:
    return max(1, round(side / stride)) * stride


def _start(resized: int, crop: int) -> int:
    """Return the first pixel of torchvision's center crop; negative for a smaller image, which it pads."""
    return round((resized - crop) / 2) if resized >= crop else -((crop - resized) // 2)


__all__ = ["MAX_POSITIONS", "View", "stride_of", "view"]
