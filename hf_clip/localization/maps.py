"""One map per text, at the image's own size."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import CLIPModel, PreTrainedModel

from ..embedding.features import check_list
from ..embedding.texts import embed_texts
from ..model.configuration_hf_clip import HFCLIPConfig, _from_stock
from ..model.image_processing_hf_clip import open_image
from ..model.modeling_hf_clip import HFCLIPModel
from .geometry import View, stride_of, view
from .relevance import METHODS, attention_weights, grid, is_resnet, windows

ALL_METHODS = (*METHODS, "windows")

BACKGROUND = ("a photo", "a background", "a texture", "something")
"""Texts that fit anywhere: what a place has in common with these says nothing."""


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
) -> torch.Tensor:
    """Map where in an image each of the texts is.

    Texts are compared with the background: a score is the cosine similarity of image and text less the mean of those
    of image and `background`. A call leaves nothing behind in the model, so that threads may share it.

    - "dense": the score of each position's own embedding (see `HFCLIPModel.get_dense_image_features`). Below 0 the
      background fits better.
    - "gradient": how much each position contributes to the score of the whole image, 0 or more, in no unit: Grad-CAM
      for a ResNet, gradient-weighted attention relevance for a ViT.
    - "rollout": where the model attends, the same for every text.
    - "windows": the score of the window around each place, embedded as an image of its own: windows of the model's
      size, a quarter of it apart. The best at pointing at what fills a window, and many times as slow; give `whole`.

    Args:
        model: An HFCLIPModel of either family or a stock CLIPModel, in evaluation mode; "gradient" needs one that is
            not optimized.
        processor: Its processor.
        image: The image, or its path or URL; the EXIF orientation is not applied.
        texts: The texts, used as they are: write "a red circle", not a label for a template.
        method: One of the four.
        whole: Read the image to its edges with interpolated positions, instead of the square in its middle that the
            processor crops.
        shifts: Read the image this many times in each direction, shifted by a fraction of a position, and average the
            maps: finer, in `shifts`**2 of the time. With "windows" they lie this many times closer.
        background: Texts to compare with; none leaves the plain similarity.

    Returns:
        (texts, height, width), float32 on the CPU, bilinear between the model's positions. NaN marks what the model
        does not see, outside the crop.

    Raises:
        TypeError: The model is no CLIP with both towers, or `image` no single image.
        ValueError: There are no texts or no such method, `shifts` is below 1, the model is in training mode or
            optimized, or `whole` leads to too many positions.

    Example:
        >>> maps = hf_clip.where(model, processor, "photo.jpg", ["a cat", "the sofa"])
        >>> y, x = divmod(maps[0].nan_to_num(-1).argmax().item(), maps.shape[2])
    """
    check_list("texts", texts)
    if method not in ALL_METHODS:
        raise ValueError(f"there is no method {method!r}: choose one of {', '.join(ALL_METHODS)}")
    if shifts < 1:
        raise ValueError(f"shifts is {shifts}: give 1 or more")
    model = _checked(model)
    if method == "gradient" and model.optimizations:
        raise ValueError("an optimized model has no gradients: use method='dense', or load the model again")
    seen = _view(model, processor, image, whole)
    directions = embed_texts(model, processor, texts)
    if len(background):
        directions = directions - embed_texts(model, processor, background).mean(0)
    device = model.device
    if method == "windows":
        side = model.config.vision_config.image_size
        crops, rows_columns, covered = seen.windows(side, max(1, side // (4 * shifts)))
        return seen.place(windows(model, crops, directions.to(device)).unflatten(1, rows_columns), covered)
    maps = [
        shifted.place(METHODS[method](model, shifted.pixel_values.to(device), directions.to(device)))
        for shifted in seen.shifted(shifts, stride_of(model.config.vision_config))
    ]
    return torch.stack(maps).mean(0)


def attention_maps(
    model: PreTrainedModel,
    processor: Any,
    image: Image.Image | str | os.PathLike,
    layers: Sequence[int] = (-1,),
    heads: Sequence[int] | None = None,
    *,
    whole: bool = False,
) -> torch.Tensor:
    """Map how much the class token (ViT) or the pooling (ResNet) attends to each place of an image.

    Args:
        model: An HFCLIPModel of either family or a stock CLIPModel, in evaluation mode.
        processor: Its processor.
        image: The image, or its path or URL.
        layers: Numbers of layers, from the end if negative; a ResNet has one.
        heads: Numbers of heads; without them the mean of all heads.
        whole: As in `where`.

    Returns:
        (layers, heads, height, width), float32 on the CPU; one head where none are named. NaN outside the crop.

    Raises:
        TypeError: The model is no CLIP with both towers, or `image` no single image.
        ValueError: There is no such layer or head, or the model is in training mode.

    Example:
        >>> maps = hf_clip.attention_maps(model, processor, "photo.jpg", layers=[0, -1], heads=[0, 3])
    """
    model = _checked(model)
    config = model.config.vision_config
    _check_numbers("layer", layers, 1 if is_resnet(model) else config.num_hidden_layers)
    _check_numbers("head", heads or [], config.num_attention_heads)
    seen = _view(model, processor, image, whole)
    pixel_values = seen.pixel_values.to(model.device)
    weights = attention_weights(model, pixel_values)
    maps = torch.stack([weights[layer][0, :, 0, 1:].float() for layer in layers])  # (layers, heads, HW)
    maps = maps.mean(1, keepdim=True) if heads is None else maps[:, list(heads)]
    return seen.place(maps.flatten(0, 1).unflatten(1, grid(model, pixel_values))).unflatten(0, maps.shape[:2])


def _checked(model: PreTrainedModel) -> PreTrainedModel:
    """Return `model`, or an HFCLIPModel that shares the tensors of a stock one."""
    stock = isinstance(model, CLIPModel)
    if not stock and not hasattr(model, "get_dense_image_features"):
        raise TypeError(
            f"{type(model).__name__} has no get_dense_image_features: load the same folder or id with "
            "hf_clip.HFCLIPModel.from_pretrained"
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


def _view(model: PreTrainedModel, processor: Any, image: Any, whole: bool) -> View:
    if isinstance(image, str | os.PathLike):
        with open_image(image) as opened:
            return view(processor, opened, model.config.vision_config, whole)
    if not isinstance(image, Image.Image):
        raise TypeError(f"image is a {type(image).__name__}, not one image: give one PIL image, path or URL")
    return view(processor, image, model.config.vision_config, whole)


__all__ = ["BACKGROUND", "attention_maps", "where"]
