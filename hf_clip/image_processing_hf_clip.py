"""CLIP's image transform: `HFCLIPImageProcessor` equals the original's, `HFCLIPImageProcessorTorchvision` is close."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as tvF
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
    infer_channel_dimension_format,
    is_valid_image,
)
from transformers.models.auto.image_processing_auto import DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS

# Pixels in a resized image, before the crop: 1 GiB in Pillow. It admits sides up to 5349:1 at 224, 1337:1 at 448.
MAX_RESIZED_PIXELS = 2**28


def is_address(source: str) -> bool:
    return source.startswith(("http://", "https://", "data:"))


def open_image(source: str | os.PathLike) -> Image.Image:
    """The image at a path, an `http(s)://` or a `data:` address, as the file has it: own mode, not turned by EXIF."""
    source = os.fspath(source)
    try:
        if is_address(source):
            # some sites turn urllib's own name away
            with urlopen(Request(source, headers={"User-Agent": "hf_clip"}), timeout=60) as response:
                content = response.read()
        else:
            content = Path(source).read_bytes()
        return Image.open(io.BytesIO(content))
    except (OSError, ValueError) as error:
        raise OSError(f"can't read {source[:200]!r} as an image (texts go in `text=`): {error}") from error


def _flatten(images: Any) -> Iterator[Any]:
    """One image at a time, from any nesting of lists and batches."""
    if isinstance(images, list | tuple):
        for image in images:
            yield from _flatten(image)
    elif not isinstance(images, Image.Image) and images.ndim == 4:
        yield from images
    else:
        yield images


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Say in a ValueError which of the images it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"images[{index}]: {error}") from error


@contextmanager
def _parallel(jobs: int) -> Iterator[Callable]:
    """A `map` on as many threads as PyTorch uses (`torch.set_num_threads`); Pillow and NumPy let them run at once.

    The pool lives as long as the batch: one kept for longer would hang in a forked process.
    """
    threads = min(jobs, torch.get_num_threads())
    if threads < 2:
        yield map
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map


def _resized_size(width: int, height: int, size: SizeDict) -> tuple[int, int]:
    """Width and height after resizing; the long side is rounded down, as in torchvision's Resize."""
    if size.shortest_edge and size.longest_edge:
        new_height, new_width = get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    elif size.shortest_edge:
        long = int(size.shortest_edge * max(width, height) / min(width, height))
        new_width, new_height = (size.shortest_edge, long) if width <= height else (long, size.shortest_edge)
    elif size.height and size.width:
        new_width, new_height = size.width, size.height
    elif size.max_height and size.max_width:
        new_height, new_width = get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    else:
        raise ValueError(f"size needs 'shortest_edge' or 'height' and 'width', got {dict(size)}.")
    if new_width * max(new_height, height) > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"{width}x{height} pixels would become {new_width}x{new_height}, more than {MAX_RESIZED_PIXELS:,}; "
            "crop the image first."
        )
    return new_width, new_height


def _crop_sides(crop_size: SizeDict) -> list[int]:
    if not (crop_size.height and crop_size.width):
        raise ValueError(f"crop_size needs 'height' and 'width', got {dict(crop_size)}.")
    return [crop_size.height, crop_size.width]


def _as_tensor(image: Any, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    """An array or a tensor as (C, H, W), uint8 from integers and booleans, float32 from floating-point numbers."""
    if isinstance(image, np.ndarray):
        # a copy: views may run backwards, be read-only, or have the other byte order
        image = torch.from_numpy(np.array(image, image.dtype.newbyteorder("=")))
    image, shape = image.detach(), tuple(image.shape)
    if image.ndim == 2:
        image = image[None]
    elif image.ndim != 3:
        raise ValueError(f"an image has 2 or 3 axes, this one has shape {shape}.")
    else:
        if input_data_format is None:
            if not {shape[0], shape[-1]} & {1, 3, 4}:
                raise ValueError(f"an image has 1, 3 or 4 channels, this one has shape {shape}.")
            input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
        if ChannelDimension(input_data_format) == ChannelDimension.LAST:
            image = image.movedim(-1, 0)  # (H, W, C) -> (C, H, W)
        if image.shape[0] > 4:
            raise ValueError(f"an image has 1 to 4 channels, this one has shape {shape}.")
    if image.is_floating_point():
        return image.float()
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if image.dtype != torch.uint8:
        low, high = image.long().min().item(), image.long().max().item()
        if not 0 <= low <= high <= 255:
            raise ValueError(f"integers go from 0 to 255 in an image, here from {low} to {high}.")
    return image.to(torch.uint8)


def _to_8_bit(image: torch.Tensor, scale: int) -> torch.Tensor:
    """Round floating-point numbers in 0..`scale` to 8 bits, as they were before ToTensor."""
    low, high = image.min().item(), image.max().item()
    if scale == 255 and low >= 0 and high <= 1 and (image != image.round()).any():
        raise ValueError("these floating-point numbers are in 0..1, rescaled already: pass do_rescale=False.")
    if not 0 <= low <= high <= scale:
        raise ValueError(
            f"floating-point numbers go from 0 to {scale} with do_rescale={scale == 255}, here from {low} to {high}."
        )
    return (image * (255 / scale)).round().to(torch.uint8)


def _to_rgb(image: torch.Tensor) -> torch.Tensor:
    """(C, H, W) -> (3, H, W): grey three times, alpha dropped, as in Pillow's conversion."""
    return image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)


def _normalize(
    values: np.ndarray,
    pixels: np.ndarray,
    rescale_factor: float | None,
    image_mean: float | tuple[float, ...] | None,
    image_std: float | tuple[float, ...] | None,
) -> None:
    """Fill `values` from `pixels`, both (C, H, W), by the float32 operations of ToTensor and Normalize."""
    np.copyto(values, pixels)
    if rescale_factor is not None:
        values /= np.float32(1 / rescale_factor)  # x / 255 and x * (1 / 255) round differently
    if image_mean is not None:
        mean, std = (np.float32(value).reshape(-1, 1, 1) for value in (image_mean, image_std))
        if {len(mean), len(std)} - {1, len(values)}:
            raise ValueError(
                f"image_mean and image_std have {len(mean)} and {len(std)} values for {len(values)} channels."
            )
        values -= mean
        values /= std


class HFCLIPImageProcessorMixin:
    """What the two backends share: CLIP's settings, and what counts as an image."""

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def fetch_images(self, images: Any) -> Any:
        """Open paths and addresses in any nesting of lists; images stay what they are."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, str | os.PathLike):
            return open_image(images)
        if is_valid_image(images):
            return images
        raise TypeError(f"an image is a PIL image, an array, a tensor, a path or a URL, not {type(images).__name__}.")

    def _prepare_image_like_inputs(self, images: ImageInput, *args, expected_ndims: int = 3, **kwargs) -> list[Any]:
        images = list(_flatten(self.fetch_images(images)))
        if not images:
            raise ValueError("images is empty: give at least one image.")
        prepared = []
        for index, image in enumerate(images):
            with _naming(index):
                shape = image.size if isinstance(image, Image.Image) else tuple(image.shape)
                if 0 in shape:
                    raise ValueError(f"an image of size {'x'.join(map(str, shape))} has no pixels.")
                prepared.append(self.process_image(image, *args, **kwargs))
        return prepared


class HFCLIPImageProcessor(HFCLIPImageProcessorMixin, PilBackend):
    """CLIP's preprocessing, bit for bit that of the original's `clip.clip._transform` (with the same Pillow: 11 and 13
    resize some images with a different last bit).

    An image is resized, then cropped, then converted to RGB, in that order and in its own mode until then. An array or
    a tensor, on any device, is the 8-bit image it shows: integers in 0..255, booleans, or floating-point numbers in
    0..255 (in 0..1 with `do_rescale=False`). Paths and URLs are opened as `PIL.Image.open` does: the EXIF orientation
    is not applied, as it wasn't in the original. (The pipelines of transformers open files themselves, turn them
    upright and convert them to RGB before any image processor sees them.)

    `pixel_values` is float32 (B, 3, crop height, crop width), or 8-bit where neither `do_rescale` nor `do_normalize`
    is on. The images of a batch share the cores (`torch.set_num_threads`); how many there are changes no bit.

    Raises ValueError for an empty batch, an image without pixels, a mode that Pillow can't convert to RGB, or a resize
    to more than `MAX_RESIZED_PIXELS`; TypeError for what is no image; OSError for a file that can't be read.
    """

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        **kwargs,
    ) -> tuple[Image.Image, float | None]:
        """The image in its own mode, and the factor that its values want, if any."""
        factor = rescale_factor if do_rescale else None
        if isinstance(image, Image.Image):
            return image, factor
        image = _as_tensor(image, input_data_format).cpu()
        if image.is_floating_point():
            image, factor = _to_8_bit(image, 255 if do_rescale else 1), factor or 1 / 255
        return Image.fromarray(image.movedim(0, -1).squeeze(-1).contiguous().numpy()), factor

    def _preprocess(
        self,
        images: list[tuple[Image.Image, float | None]],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_convert_rgb: bool,
        do_normalize: bool,
        image_mean: float | tuple[float, ...] | None,
        image_std: float | tuple[float, ...] | None,
        do_pad: bool | None,
        pad_size: SizeDict | None,
        return_tensors: str | None,
        **kwargs,
    ) -> BatchFeature:
        def to_pixels(index: int) -> np.ndarray:
            with _naming(index):
                image, _ = images[index]
                if do_resize and (resized_size := _resized_size(*image.size, size)) != image.size:
                    # the whole image: its size decides which direction Pillow resizes first, so no part comes out alike
                    image = image.resize(resized_size, resample)
                if do_center_crop:
                    image = tvF.center_crop(image, _crop_sides(crop_size))
                if do_convert_rgb and image.mode != "RGB":
                    image = image.convert("RGB")
                pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
                return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # (H, W, C) -> (C, H, W)

        # one job for each object: two threads must not decode the same file
        jobs = {id(image): index for index, (image, _) in enumerate(images)}
        factors = [factor for _, factor in images]
        normalize = partial(
            _normalize, image_mean=image_mean if do_normalize else None, image_std=image_std if do_normalize else None
        )
        with _parallel(len(jobs)) as parallel:
            pixels = dict(zip(jobs, parallel(to_pixels, jobs.values()), strict=True))
            pixels = [pixels[id(image)] for image, _ in images]
            dtype = np.float32 if do_normalize or any(factors) else np.result_type(*{p.dtype for p in pixels})
            if len({p.shape for p in pixels}) == 1:
                values = np.empty((len(pixels), *pixels[0].shape), dtype)
            else:
                values = [np.empty(p.shape, dtype) for p in pixels]
            for _ in parallel(normalize, values, pixels, factors):
                pass

        if do_pad:
            values = np.stack(self.pad(list(values), pad_size=pad_size))
        if return_tensors is None:
            values = list(values)
        elif isinstance(values, list):
            raise ValueError(
                "images of several sizes make no tensor: leave do_center_crop on, or pass return_tensors=None."
            )
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)


class HFCLIPImageProcessorTorchvision(HFCLIPImageProcessorMixin, TorchvisionBackend):
    """CLIP's preprocessing on tensors, on their own device or on `device=`: close to the original, not equal.

    Images are converted to RGB first, then resized as tensors and cropped where the original crops. On a CPU 0.3% of a
    photo's values are 1 or, rarely, 2 of 255 levels off. Slivers and enlarged noise are up to 13 levels off, palette
    and transparent images anywhere, since only in their own mode they resize as in the original.

    Saved settings name no backend: `AutoImageProcessor.from_pretrained(..., backend="torchvision")` gives this one.
    """

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(C, H, W), uint8 or float32."""
        if isinstance(image, Image.Image):
            image = np.array(image.convert("RGB") if do_convert_rgb else image)
            input_data_format = ChannelDimension.LAST
        image = _as_tensor(image, input_data_format).to(device)
        return _to_rgb(image) if do_convert_rgb else image

    def resize(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        width, height = _resized_size(image.shape[-1], image.shape[-2], size)
        return super().resize(image, SizeDict(height=height, width=width), **kwargs)

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        return tvF.center_crop(image, _crop_sides(size))

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "image_processor_type": HFCLIPImageProcessor.__name__}


# where no backend is asked for, AutoImageProcessor would choose torchvision
DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS.append(HFCLIPImageProcessor.__name__)

__all__ = ["HFCLIPImageProcessor", "HFCLIPImageProcessorTorchvision"]
