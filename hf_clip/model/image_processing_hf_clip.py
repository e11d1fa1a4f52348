"""CLIP's image transform: `HFCLIPImageProcessor` equals the original's, `HFCLIPImageProcessorTorchvision` is close."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as tvF
from transformers import BatchFeature

try:
    from transformers.image_processing_backends import PilBackend, TorchvisionBackend
except ImportError as error:
    from .requirement_hf_clip import older_transformers

    raise older_transformers() from error
from transformers.image_processing_base import (
    ImageProcessingMixin,  # noqa: F401 (diffusers loads a class by a base class that its module names)
)
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
    infer_channel_dimension_format,
    is_valid_image,
)
from transformers.utils import logging

from .image_reading_hf_clip import is_image_path, naming, open_image
from .pixels_hf_clip import (
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

logger = logging.get_logger(__name__)


def _flatten(images: Any) -> Iterator[Any]:
    """Yield one image at a time, from any nesting of lists and batches."""
    if isinstance(images, list | tuple):
        for image in images:
            yield from _flatten(image)
    elif not isinstance(images, Image.Image) and getattr(images, "ndim", 3) == 4:
        yield from images
    else:
        yield images


def _check_is_image(source: Any) -> None:
    if not is_image_path(source) and not is_valid_image(source):
        raise TypeError(f"an image is a PIL image, an array, a tensor, a path or a URL, not {type(source).__name__}")


@contextmanager
def _opened(source: Any) -> Iterator[Any]:
    """Open a path for the time of the block only; yield any other image as it is."""
    if is_image_path(source):
        with open_image(source) as image:
            yield image
    else:
        yield source


def _resized_size(width: int, height: int, size: SizeDict) -> tuple[int, int]:
    """Compute width and height after resizing; the long side is rounded down, as in torchvision's Resize."""
    if size.shortest_edge and size.longest_edge:
        new_height, new_width = get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    elif size.shortest_edge:
        new_width, new_height = short_side_size(width, height, size.shortest_edge)
    elif size.height and size.width:
        new_width, new_height = size.width, size.height
    elif size.max_height and size.max_width:
        new_height, new_width = get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    else:
        raise ValueError(f"size needs 'shortest_edge' or 'height' and 'width', got {dict(size)}")
    check_resized(width, height, new_width, new_height)
    return new_width, new_height


def _crop_sides(crop_size: SizeDict) -> tuple[int, int]:
    if not (crop_size.height and crop_size.width):
        raise ValueError(f"crop_size needs 'height' and 'width', got {dict(crop_size)}")
    return crop_size.height, crop_size.width


def _as_tensor(image: Any, do_rescale: bool | None, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    """Turn an array or a tensor into (C, H, W), uint8 from integers and booleans, else float32."""
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "biuf":
            raise TypeError(f"an image is an array of numbers, not of dtype {image.dtype}")
        # a copy: views may run backwards, be read-only, or have the other byte order
        image = torch.from_numpy(np.array(image, image.dtype.newbyteorder("=")))
    elif image.is_complex():
        raise TypeError(f"an image is a tensor of real numbers, not of {image.dtype}")
    shape = tuple(image.shape)
    if image.ndim == 2:
        image = image[None]
    elif image.ndim != 3:
        raise ValueError(f"an image has 2 or 3 axes, this one has shape {shape}")
    else:
        if input_data_format is None:
            if not {shape[0], shape[-1]} & {1, 3, 4}:
                raise ValueError(f"an image has 1, 3 or 4 channels, this one has shape {shape}")
            input_data_format = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
        if ChannelDimension(input_data_format) == ChannelDimension.LAST:
            image = image.movedim(-1, 0)  # (H, W, C) -> (C, H, W)
        if image.shape[0] > 4:
            raise ValueError(f"an image has 1 to 4 channels, this one has shape {shape}")
    if image.is_floating_point():
        _check_range(image.detach(), 255 if do_rescale else 1)
        return image.float()
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if image.dtype != torch.uint8:
        low, high = image.long().min().item(), image.long().max().item()
        if not 0 <= low <= high <= 255:
            raise ValueError(f"integers go from 0 to 255 in an image, here from {low} to {high}")
    return image.to(torch.uint8)


def _check_range(image: torch.Tensor, scale: int) -> None:
    """Raise ValueError unless floating-point numbers lie in 0..`scale`, and fill more than its lowest 255th."""
    low, high = image.min().item(), image.max().item()
    if scale == 255 and low >= 0 and 0 < high <= 1:
        raise ValueError("these floating-point numbers are in 0..1, rescaled already: pass do_rescale=False")
    if not 0 <= low <= high <= scale:
        raise ValueError(
            f"floating-point numbers go from 0 to {scale} with do_rescale={scale == 255}, here from {low} to {high}: "
            "give the image before it was normalized"
        )


def _to_rgb(image: torch.Tensor) -> torch.Tensor:
    """Turn (C, H, W) into (3, H, W): gray three times, alpha dropped, as in Pillow's conversion."""
    return image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)


class HFCLIPImageProcessorMixin:
    """CLIP's settings, and the checks of images, for both backends."""

    _auto_class = "AutoImageProcessor"
    resample = PILImageResampling.BICUBIC
    image_mean = list(OPENAI_MEAN)
    image_std = list(OPENAI_STD)
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def fetch_images(self, images: Any) -> Any:
        """Open paths and addresses in any nesting of lists; leave images as they are."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        _check_is_image(images)
        return open_image(images) if is_image_path(images) else images

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, without the place of the code of a processor around them."""
        settings = super().to_dict()  # type: ignore[misc]
        if "AutoProcessor" in settings.get("auto_map", {}):
            settings["auto_map"] = {key: code for key, code in settings["auto_map"].items() if key != "AutoProcessor"}
        return settings

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs):
        """Build an image processor from saved settings, without the place of its code."""
        settings = {name: value for name, value in image_processor_dict.items() if name != "auto_map"}
        return super().from_dict(settings, **kwargs)  # type: ignore[misc]

    def save_pretrained(self, *args, **kwargs) -> list[str]:
        """Save the settings; the place of the code, which transformers adds to them, is removed again."""
        files = super().save_pretrained(*args, **kwargs)  # type: ignore[misc]
        self.__dict__.pop("auto_map", None)
        return files

    def _prepare_image_like_inputs(self, images: ImageInput, *args, expected_ndims: int = 3, **kwargs) -> list[Any]:
        check_scales({name: value for name, value in kwargs.items() if value is not None})
        sources = list(_flatten(images))
        if not sources:
            raise ValueError("images is empty: give at least one image")
        return [self._prepare(index, source, **kwargs) for index, source in enumerate(sources)]

    def _prepare(self, index: int, source: Any, **kwargs) -> Any:
        """Turn one image into the form that `_preprocess` reads."""
        raise NotImplementedError

    def _process(self, source: Any, **kwargs) -> Any:
        """Check the size of an opened image, and call `process_image`."""
        check_not_empty(source.size if isinstance(source, Image.Image) else tuple(source.shape))
        return self.process_image(source, **kwargs)  # type: ignore[attr-defined]


class HFCLIPImageProcessor(HFCLIPImageProcessorMixin, PilBackend):
    """Prepare images for CLIP: the original's `clip.clip._transform`, bit for bit with the same Pillow.

    An image is resized, then cropped, then converted to RGB, in that order and in its own mode until then. An array or
    a tensor, on any device, is the 8-bit image it shows: integers in 0..255, booleans, or floating-point numbers in
    0..255 (in 0..1 with `do_rescale=False`). Paths and URLs are opened one at a time, as `PIL.Image.open` does: the
    EXIF orientation is not applied, as in the original. (The pipelines of transformers open files themselves,
    turn them upright and convert them to RGB before any image processor sees them.)

    `pixel_values` is float32 (B, 3, crop height, crop width), or 8-bit where neither `do_rescale` nor `do_normalize`
    is on. The images of a batch share the cores (`torch.set_num_threads`); how many there are changes no bit. Pillow 11
    and 13 resize some images with a different last bit.

    Args:
        size: `{"shortest_edge": 224}`, or height and width; the side that is resized to.
        crop_size: Height and width of the crop.
        **kwargs: The other settings of transformers' image processors, such as `image_mean` or `do_center_crop`.

    Raises:
        ValueError: The batch is empty, or an image has no pixels, a mode that Pillow cannot convert to RGB, or more
            than `MAX_RESIZED_PIXELS` once it is resized. Errors about an image name its place and its file.
        TypeError: An input is no image.
        OSError: A file cannot be read.

    Example:
        >>> pixels = HFCLIPImageProcessor()("photo.jpg", return_tensors="pt").pixel_values  # (1, 3, 224, 224)
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
        """Return the image in its own mode, and the factor that its values want, if any."""
        factor = rescale_factor if do_rescale else None
        if isinstance(image, Image.Image):
            return image, factor
        if isinstance(image, torch.Tensor) and image.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "this image requires gradients, which Pillow cannot carry: load the processor with "
                "backend='torchvision', or detach() the image"
            )
        image = _as_tensor(image, do_rescale, input_data_format).detach().cpu()
        if image.is_floating_point():
            # to 8 bits, as the values were before ToTensor
            image, factor = (image * (1 if do_rescale else 255)).round().to(torch.uint8), factor or 1 / 255
        return Image.fromarray(image.movedim(0, -1).squeeze(-1).contiguous().numpy()), factor

    def _prepare(self, index: int, source: Any, **kwargs) -> Any:
        with naming(index, source):
            _check_is_image(source)
        return source  # `_preprocess` opens and closes one at a time

    def _preprocess(
        self,
        images: list[Any],
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
        def to_pixels(index: int) -> tuple[np.ndarray, float | None]:
            with naming(index, images[index]), _opened(images[index]) as opened:
                image, factor = self._process(opened, do_convert_rgb=do_convert_rgb, **kwargs)
                resized_size = _resized_size(image.width, image.height, size) if do_resize else None
                crop_sides = _crop_sides(crop_size) if do_center_crop else None
                return transform_image(image, resized_size, resample, crop_sides, bool(do_convert_rgb)), factor

        # one job for each object: two threads must not decode the same file
        jobs = {id(image): index for index, image in enumerate(images)}
        normalize = partial(
            write_values, mean=image_mean if do_normalize else None, std=image_std if do_normalize else None
        )
        with parallel_map(len(jobs), torch.get_num_threads()) as parallel:
            done = dict(zip(jobs, parallel(to_pixels, jobs.values()), strict=True))
            pixels, factors = zip(*(done[id(image)] for image in images), strict=True)
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
                "images of several sizes make no tensor: leave do_center_crop on, or pass return_tensors=None"
            )
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)


class HFCLIPImageProcessorTorchvision(HFCLIPImageProcessorMixin, TorchvisionBackend):
    """Prepare images for CLIP on tensors, on their own device or on `device=`: close to the original, not equal.

    Images are converted to RGB first, then resized as tensors and cropped where the original crops. On a CPU 0.3% of a
    photo's values are 1 or, rarely, 2 of 255 levels off. Slivers and enlarged noise are up to 13 levels off, palette
    and transparent images anywhere, since only in their own mode they resize as in the original. Gradients pass.

    Saved settings name no backend: `AutoImageProcessor.from_pretrained(..., backend="torchvision")` gives this one.

    Args:
        **kwargs: As `HFCLIPImageProcessor` takes them.

    Raises:
        ValueError: As in `HFCLIPImageProcessor`.

    Example:
        >>> processor = AutoImageProcessor.from_pretrained("clip-rn50", backend="torchvision")
        >>> pixels = processor(images, device="cuda", return_tensors="pt").pixel_values  # (B, 3, 224, 224)
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        logger.warning_once(
            "backend='torchvision' (or use_fast=True) gives pixels close to the original's, not equal: "
            "backend='pil', the default, gives the same bits"
        )

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Turn an image into a tensor (C, H, W), uint8 or float32, that keeps the gradients of a tensor."""
        if isinstance(image, Image.Image):
            image = np.array(image.convert("RGB") if do_convert_rgb else image)
            input_data_format = ChannelDimension.LAST
        image = _as_tensor(image, do_rescale, input_data_format).to(device)
        return _to_rgb(image) if do_convert_rgb else image

    def _prepare(self, index: int, source: Any, **kwargs) -> torch.Tensor:
        with naming(index, source):
            _check_is_image(source)
            with _opened(source) as image:
                return self._process(image, **kwargs)

    def resize(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        height, width = image.shape[-2:]
        width, height = _resized_size(width, height, size)
        return super().resize(image, SizeDict(height=height, width=width), **kwargs)

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:
        return tvF.center_crop(image, list(_crop_sides(size)))

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "image_processor_type": HFCLIPImageProcessor.__name__}


__all__ = ["HFCLIPImageProcessor", "HFCLIPImageProcessorTorchvision"]
