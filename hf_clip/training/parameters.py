"""The choice of trained parameters, and their learning rates and weight decay."""

import math
import re
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ..model.modeling_hf_clip_base import HFCLIPPreTrainedModel
from ..utils.text import listing

PARTS = ("all", "image", "text", "projections")
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
HALF_PRECISIONS = (torch.float16, torch.bfloat16)
# the layers into the embedding space; a ResNet's is the output projection of its attention pooling
PROJECTIONS = ("visual_projection.", "text_projection.", "vision_model.attention_pool.out_proj.")
LAYER = re.compile(r"(text_model\.encoder\.layers|vision_model\.encoder\.layers|vision_model\.stages)\.(\d+)\.")
BEFORE_LAYERS = re.compile(r"(text_model|vision_model)\.(embeddings|pre_layrnorm|stem)\.")


def tower_of(name: str) -> str | None:
    """Return the tower of a parameter, "image" or "text", by its name; None for the logit scale."""
    if "vision_model." in name or "visual_projection." in name:
        return "image"
    return "text" if "text_model." in name or "text_projection." in name else None


def depth_of(name: str) -> float:
    """Return the layer of a parameter by its name: 0 before the layers, then 1, 2, ..., and infinity after them."""
    if layer := LAYER.search(name):
        return int(layer[2]) + 1
    return 0 if BEFORE_LAYERS.search(name) else math.inf


def depths(model: nn.Module) -> dict[str, int]:
    """Count the layers (stages of a ResNet) of each tower."""
    found = {"image": 0, "text": 0}
    for name, _ in model.named_parameters():
        if (layer := LAYER.search(name)) and (tower := tower_of(name)):
            found[tower] = max(found[tower], int(layer[2]) + 1)
    return found


def trainable(
    model: nn.Module, what: str = "all", last_layers: int | None = None, logit_scale: bool = True
) -> nn.Module:
    """Choose the parameters to train by setting `requires_grad`; all others are frozen.

    Args:
        model: A CLIP with both towers.
        what: "all", "image", "text", or "projections" for the last linear layer of each tower.
        last_layers: Train only this many last layers (stages of a ResNet) of the chosen towers, and their projections.
        logit_scale: Train the logit scale too.

    Returns:
        The same model.

    Raises:
        ValueError: There is no such part, or there are no such layers.

    Example:
        >>> trainable(model, "image", last_layers=2)  # the text tower stays frozen
    """
    if what not in PARTS:
        raise ValueError(f"there is no part {what!r} to train: choose one of {', '.join(PARTS)}")
    count = depths(model)
    chosen = [tower for tower in count if what in ("all", tower)]
    if last_layers is not None and not 1 <= last_layers <= max((count[tower] for tower in chosen), default=0):
        layers = ", ".join(f"{number} {tower} layers" for tower, number in count.items())
        raise ValueError(f"last_layers is {last_layers}, the model has {layers}: give no more, or None for all")
    for name, parameter in model.named_parameters():
        tower = tower_of(name)
        if tower is None:
            parameter.requires_grad_(logit_scale)
        elif what == "projections":
            parameter.requires_grad_(any(part in name for part in PROJECTIONS))
        else:
            deep = last_layers is None or depth_of(name) > count[tower] - last_layers
            parameter.requires_grad_(tower in chosen and deep)
    return model


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    image_layer_decay: float | None = None,
    text_layer_decay: float | None = None,
) -> list[dict]:
    """Group the trained parameters for an optimizer, by weight decay and learning rate.

    Gains, biases, scales, class and position embeddings have no weight decay. With a layer decay d, the n-th of N
    layers trains at `lr * d ** (N + 1 - n)`, embeddings and stem count as layer 0, and projections train at `lr`.

    Args:
        model: A CLIP, or an adapter around one.
        lr: The learning rate of the last layers.
        weight_decay: The weight decay of all others.
        image_layer_decay: The layer decay of the image tower (stages of a ResNet count as layers).
        text_layer_decay: The layer decay of the text tower.

    Returns:
        Groups with `params`, `lr` and `weight_decay`.

    Raises:
        ValueError: No parameter is trained.

    Example:
        >>> optimizer = torch.optim.AdamW(param_groups(model, lr=1e-5, weight_decay=0.1, image_layer_decay=0.7))
    """
    spared = undecayed(model)
    factors = {"image": image_layer_decay or 1.0, "text": text_layer_decay or 1.0}
    count = depths(model)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in trained(model):
        tower, decay = tower_of(name), 0.0 if name in spared else weight_decay
        steps = max(0.0, count[tower] + 1 - depth_of(name)) if tower else 0.0
        rate = lr * factors[tower] ** steps if tower else lr
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter is trained: call trainable(model), or add an adapter")
    return list(groups.values())


def undecayed(model: nn.Module) -> set[str]:
    """Return the names of parameters without weight decay, by the rule of our models, for any model."""
    return HFCLIPPreTrainedModel.no_weight_decay(model)


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trained parameters with their names."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def check_precision(model: nn.Module) -> None:
    """Raise ValueError if a trained parameter is in half precision, where AdamW's steps vanish or overflow."""
    half = [name for name, parameter in trained(model) if parameter.dtype in HALF_PRECISIONS]
    if half:
        raise ValueError(
            f"{len(half)} parameters to train are in half precision ({listing(half, 2)}): load the model with "
            "dtype=torch.float32, and pass bf16=True for speed"
        )


@torch.no_grad()
def clamp_logit_scale(model: nn.Module, maximum: float) -> None:
    """Clamp the logit scale to `maximum`, if it is trained."""
    if model.logit_scale.requires_grad:
        model.logit_scale.clamp_(max=math.log(maximum))


def lora_target_modules(
    model: nn.Module, towers: str = "both", projections: bool = False, layers: Sequence[str] = ("q_proj", "v_proj")
) -> str:
    """Return the pattern of the layers that LoRA adapts: the query and value projections of every attention.

    Args:
        model: A CLIP of either family.
        towers: "both", "image" or "text".
        projections: Adapt the projections into the embedding space too.
        layers: Names of layers, of LORA_LAYERS.

    Returns:
        A pattern for PEFT's `LoraConfig(target_modules=...)`.

    Raises:
        ValueError: There is no such tower or layer.

    Example:
        >>> model = get_peft_model(model, LoraConfig(r=8, target_modules=lora_target_modules(model)))
    """
    prefixes = {"both": "(text|vision)_model", "image": "vision_model", "text": "text_model"}
    if towers not in prefixes:
        raise ValueError(f"there is no tower {towers!r}: choose one of {', '.join(prefixes)}")
    if wrong := [layer for layer in layers or [""] if layer not in LORA_LAYERS]:
        raise ValueError(f"there is no layer {wrong[0]!r} to adapt: choose of {', '.join(LORA_LAYERS)}")
    pattern = rf"{prefixes[towers]}\..*({'|'.join(layers)})"
    if not projections:
        return pattern
    resnet = isinstance(model.visual_projection, nn.Identity)
    image = r"vision_model\.attention_pool\.out_proj" if resnet else "visual_projection"
    last = {"both": f"{image}|text_projection", "image": image, "text": "text_projection"}[towers]
    return f"{pattern}|{last}"


__all__ = [
    "LORA_LAYERS",
    "PARTS",
    "check_precision",
    "clamp_logit_scale",
    "lora_target_modules",
    "param_groups",
    "trainable",
    "trained",
    "undecayed",
]
