"""Maps of texts and of attention over an image, at the size of the image."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import CLIPModel, PreTrainedModel

from ..data.images import Exif, ImageRef, ImageTally
from ..embedding.features import check_list
from ..embedding.texts import embed_texts
from ..model.configuration_hf_clip import HFCLIPConfig, _from_stock
from ..model.modeling_hf_clip import HFCLIPModel
from .geometry import stride_of, view
from .relevance import METHODS, attention_weights, grid, is_resnet, score_windows

ALL_METHODS = (*METHODS, "windows")
# resolutions at which windows of the model's size are cut: their sides are 1 to 1/5 of the short side
SCALES = (1, 1.5, 2, 2.5, 4, 5)
SINGLE_SCALE_PENALTY = 0.01
MAX_WINDOWS = 8192

BACKGROUND = ("a photo", "a background", "a texture", "something")
"""Texts that fit any place: similarity with them is subtracted from every score."""


def where(
    model: PreTrainedModel,
    processor: Any,
    image: Image.Image | str | os.PathLike,
    texts: Sequence[str],
    method: str = "dense",
    *,
    whole: bool = False,
    shifts: int = 1,
    background: Sequence[str] = BACKGROUND,
    exif: Exif = "ignore",
) -> torch.Tensor:
    """Map where in an image each of the texts is.

    A score is the cosine similarity of image and text minus the mean similarity of image and `background`; below 0 the
    background fits better. A call leaves no hook and no setting in the model, so threads may share it.

    - "dense": the score of each position's own embedding (see `HFCLIPModel.get_dense_image_features`).
    - "gradient": the contribution of each position to the score of the whole image, 0 or more, without a unit: Grad-CAM
      for a ResNet, gradient-weighted attention relevance for a ViT.
    - "rollout": the attention of the model, the same for every text.
    - "windows": the score of the windows around each place, each embedded as an image of its own. Windows have sides of
      the image's short side down to a fifth of it, and overlap by three quarters. The best method at pointing, and
      hundreds of times as slow as "dense".

    Args:
        model: An HFCLIPModel of either family or a stock CLIPModel, in evaluation mode; "gradient" needs one that is
            not optimized.
        processor: Its processor.
        image: The image, or its path or URL.
        texts: Complete texts, such as "a red circle"; no template is applied.
        method: "dense", "gradient", "rollout" or "windows".
        whole: Read the image to its edges with interpolated positions, instead of the square in its middle that the
            processor crops.
        shifts: Average the maps of `shifts`**2 readings, shifted by a fraction of a position: finer and slower. With
            "windows", the windows lie this many times closer.
        background: Texts whose mean similarity is subtracted; without any, scores are plain similarities.
        exif: "apply" turns the image as its EXIF orientation says, and the maps with it; "ignore" does as the original.

    Returns:
        (texts, height, width), float32 on the CPU, bilinear between the model's positions. NaN outside the crop.

    Raises:
        TypeError: The model is not a CLIP with both towers, or `image` is not a single image.
        UnreadableImageError: The image cannot be read.
        ValueError: There are no texts, the method is unknown, `shifts` is below 1, the model is in training mode or
            optimized, or the image is so oblong that there are too many positions or windows.

    Example:
        >>> maps = hf_clip.where(model, processor, "photo.jpg", ["a cat", "the sofa"])
        >>> y, x = divmod(maps[0].nan_to_num(-1).argmax().item(), maps.shape[2])
    """
    check_list("texts", texts)
    if method not in ALL_METHODS:
        raise ValueError(f"there is no method {method!r}: choose from {', '.join(ALL_METHODS)}")
    if shifts < 1:
        raise ValueError(f"shifts is {shifts}: choose 1 or more")
    model = _checked(model)
    if method == "gradient" and model.optimizations:
        raise ValueError("an optimized model has no gradients: use method='dense', or load the model again")
    picture = _single_image(image, exif)
    seen = view(processor, picture, model.config.vision_config, whole)
    directions = embed_texts(model, processor, texts)
    if len(background):
        directions = directions - embed_texts(model, processor, background).mean(0)
    device = model.device
    if method == "windows":
        return _best_scale(window_maps(model, processor, picture, directions.to(device), whole, shifts))
    maps = [
        shifted.place(METHODS[method](model, shifted.pixel_values.to(device), directions.to(device)))
        for shifted in seen.shifted(shifts, stride_of(model.config.vision_config))
    ]
    return torch.stack(maps).mean(0)


def window_maps(
    model: PreTrainedModel, processor: Any, image: Image.Image, directions: torch.Tensor, whole: bool, shifts: int
) -> torch.Tensor:
    """Score windows of each scale: (scales, texts, height, width) of the image, NaN outside the crop."""
    config = model.config.vision_config
    side = config.image_size
    views = [view(processor, image, config, whole, scale) for scale in SCALES]
    step = max(1, side // (4 * shifts))
    count = sum(each.count_windows(side, step) for each in views)
    if count > MAX_WINDOWS:
        raise ValueError(
            f"the image of {image.width}x{image.height} pixels has {count:,} windows, more than {MAX_WINDOWS:,}: crop "
            "it, or choose fewer shifts"
        )
    cut = [each.windows(side, step) for each in views]
    scores = score_windows(model, (crops for crops, _, _ in cut), directions, count)
    maps = [
        seen.place(values.unflatten(1, rows_columns), covered)
        for seen, values, (_, rows_columns, covered) in zip(views, scores, cut, strict=True)
    ]
    return torch.stack(maps)


def _best_scale(maps: torch.Tensor) -> torch.Tensor:
    """Combine maps of each scale (scales, texts, H, W): the best mean of two neighboring scales at each place.

    One scale alone is misled by parts: a third of a star looks like a triangle, and two windows agree on it less often.
    The largest windows have no larger neighbors, and count alone with a small penalty.
    """
    neighbors = (maps[:-1] + maps[1:]) / 2
    return torch.maximum(neighbors.amax(0), maps[0] - SINGLE_SCALE_PENALTY)


def attention_maps(
    model: PreTrainedModel,
    processor: Any,
    image: Image.Image | str | os.PathLike,
    layers: Sequence[int] = (-1,),
    heads: Sequence[int] | None = None,
    *,
    whole: bool = False,
    exif: Exif = "ignore",
) -> torch.Tensor:
    """Map the attention of the class token (ViT) or the pooling (ResNet) to each place of an image.

    Args:
        model: An HFCLIPModel of either family or a stock CLIPModel, in evaluation mode.
        processor: Its processor.
        image: The image, or its path or URL.
        layers: Numbers of layers, counted from the end if negative; a ResNet has one.
        heads: Numbers of heads (default: the mean of all heads).
        whole: As in `where`.
        exif: As in `where`.

    Returns:
        (layers, heads, height, width), float32 on the CPU; heads is 1 for the mean. NaN outside the crop.

    Raises:
        TypeError: The model is not a CLIP with both towers, or `image` is not a single image.
        UnreadableImageError: The image cannot be read.
        ValueError: There is no such layer or head, or the model is in training mode.

    Example:
        >>> maps = hf_clip.attention_maps(model, processor, "photo.jpg", layers=[0, -1], heads=[0, 3])
    """
    model = _checked(model)
    config = model.config.vision_config
    _check_numbers("layer", layers, 1 if is_resnet(model) else config.num_hidden_layers)
    _check_numbers("head", heads or [], config.num_attention_heads)
    seen = view(processor, _single_image(image, exif), config, whole)
    pixel_values = seen.pixel_values.to(model.device)
    weights = attention_weights(model, pixel_values)
    maps = torch.stack([weights[layer][0, :, 0, 1:].float() for layer in layers])  # (layers, heads, HW)
    maps = maps.mean(1, keepdim=True) if heads is None else maps[:, list(heads)]
    return seen.place(maps.flatten(0, 1).unflatten(1, grid(model, pixel_values))).unflatten(0, maps.shape[:2])


def _checked(model: PreTrainedModel) -> PreTrainedModel:
    """Return `model`; for a stock CLIPModel, an HFCLIPModel that shares its tensors."""
    stock = isinstance(model, CLIPModel)
    if not stock and not hasattr(model, "get_dense_image_features"):
        raise TypeError(
            f"{type(model).__name__} has no get_dense_image_features: load the model with hf_clip.load_clip"
        )
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    return _from_stock_model(model) if stock else model


def _from_stock_model(stock: CLIPModel) -> HFCLIPModel:
    with torch.device("meta"):  # nothing to allocate: every tensor is the stock model's
        model = HFCLIPModel(HFCLIPConfig.from_dict(_from_stock(stock.config.to_dict())))
    model.load_state_dict(stock.state_dict(), assign=True)
    return model.eval()


def _check_numbers(name: str, numbers: Sequence[int], count: int) -> None:
    if wrong := [number for number in numbers if not -count <= number < count]:
        raise ValueError(f"there is no {name} {wrong[0]}: choose from {-count} to {count - 1}")


def _single_image(image: Any, exif: Exif) -> Image.Image:
    if not isinstance(image, str | os.PathLike | Image.Image):
        raise TypeError(f"image is a {type(image).__name__}: pass one PIL image, path or URL")
    tally = ImageTally()
    picture = ImageRef.of(image).open(exif, tally)
    tally.warn(exif)
    return picture


__all__ = ["ALL_METHODS", "BACKGROUND", "attention_maps", "where", "window_maps"]
