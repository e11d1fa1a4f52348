"""Image towers in timm's layout: its parameter names, and the config.json that names the architecture."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.configuration_hf_clip import HFCLIPConfig, HFCLIPResNetConfig, HFCLIPVisionConfig
from ..model.image_processing_hf_clip import HFCLIPImageProcessor
from .checkpoints import read_checkpoint
from .errors import CheckpointError
from .infer_config import infer_vision_config
from .key_mapping import FLIP, KEEP, Op, Rule, back_to_original, from_original
from .pixels import OPENAI_PIXELS, Pixels, read_pixels
from .variants import Variant

UNSQUEEZE = Op(split=lambda tensor: (tensor[None],), join=lambda parts: parts[0][0])
CLASS_TOKEN = Op(split=lambda tensor: (tensor[None, None],), join=lambda parts: parts[0][0, 0])
HEAD_BIAS = "head.bias"  # timm's head is a linear layer, the original's projection has no bias

BLOCK, TIMM_BLOCK = "visual.transformer.resblocks.{n}", "blocks.{n}"
TIMM_VIT = [
    Rule("visual.class_embedding", ("cls_token",), CLASS_TOKEN),
    Rule("visual.positional_embedding", ("pos_embed",), UNSQUEEZE),
    Rule("visual.proj", ("head.weight",), FLIP),
    *(
        Rule(original, (ours,), KEEP)
        for original, ours in {
            "visual.conv1.weight": "patch_embed.proj.weight",
            "visual.ln_pre.{p}": "norm_pre.{p}",
            "visual.ln_post.{p}": "norm.{p}",
            f"{BLOCK}.ln_1.{{p}}": f"{TIMM_BLOCK}.norm1.{{p}}",
            f"{BLOCK}.ln_2.{{p}}": f"{TIMM_BLOCK}.norm2.{{p}}",
            f"{BLOCK}.attn.in_proj_{{p}}": f"{TIMM_BLOCK}.attn.qkv.{{p}}",
            f"{BLOCK}.attn.out_proj.{{p}}": f"{TIMM_BLOCK}.attn.proj.{{p}}",
            f"{BLOCK}.mlp.c_fc.{{p}}": f"{TIMM_BLOCK}.mlp.fc1.{{p}}",
            f"{BLOCK}.mlp.c_proj.{{p}}": f"{TIMM_BLOCK}.mlp.fc2.{{p}}",
        }.items()
    ),
]
CONVOLUTIONS = {1: "conv1_1x1", 2: "conv2_kxk", 3: "conv3_1x1"}
TIMM_RESNET = [
    Rule(original, (ours,), KEEP)
    for original, ours in {
        **{f"visual.conv{i}.{{p}}": f"stem.conv{i}.conv.{{p}}" for i in CONVOLUTIONS},
        **{f"visual.bn{i}.{{p}}": f"stem.conv{i}.bn.{{p}}" for i in CONVOLUTIONS},
        **{
            f"visual.layer{stage}.{{n}}.{original}": f"stages.{stage - 1}.{{n}}.{ours}"
            for stage in (1, 2, 3, 4)
            for original, ours in {
                **{f"conv{i}.{{p}}": f"{name}.conv.{{p}}" for i, name in CONVOLUTIONS.items()},
                **{f"bn{i}.{{p}}": f"{name}.bn.{{p}}" for i, name in CONVOLUTIONS.items()},
                "downsample.0.{p}": "shortcut.conv.conv.{p}",
                "downsample.1.{p}": "shortcut.conv.bn.{p}",
            }.items()
        },
        "visual.attnpool.positional_embedding": "head.pos_embed",
        **{f"visual.attnpool.{x}_proj.{{p}}": f"head.{x}.{{p}}" for x in "qkv"},
        "visual.attnpool.c_proj.{p}": "head.proj.{p}",
    }.items()
]

# by timm's names: width, depths, heads of the pooling, side of the images
RESNETS = {
    "resnet50_clip": (64, (3, 4, 6, 3), 32, 224),
    "resnet101_clip": (64, (3, 4, 23, 3), 32, 224),
    "resnet50x4_clip": (80, (4, 6, 10, 6), 40, 288),
    "resnet50x16_clip": (96, (6, 8, 18, 8), 48, 384),
    "resnet50x64_clip": (128, (3, 15, 36, 10), 64, 448),
}
# the sizes of any other ViT go into model_args
VITS = {"quick_gelu": "vit_base_patch32_clip_quickgelu_224", "gelu": "vit_base_patch32_clip_224"}
# of repositories whose config.json names the architecture with the other activation, and timm's own crop
OPENAI_TAG = "openai"
# heads of towers that are not 64 channels a head, by the size in timm's names
HEADS = {"huge": 16, "giant": 16, "gigantic": 16}
ARCHITECTURE = re.compile(r"vit_([a-z]+)_patch\d+(?:_plus)?_clip(_quickgelu)?_\d+|resnet\d+(?:x\d+)?_clip")


def to_timm(config: HFCLIPConfig, state_dict: dict[str, Tensor], pixels: Pixels) -> tuple[dict, dict[str, Tensor]]:
    """Return timm's config.json and the image tower's tensors under timm's names, from those of the original.

    Raises:
        CheckpointError: timm has no such tower.
    """
    vision: Any = config.vision_config
    visual = {key: tensor for key, tensor in state_dict.items() if key.startswith("visual.")}
    tensors = from_original(visual, TIMM_RESNET if vision.is_resnet else TIMM_VIT)
    if not vision.is_resnet:
        tensors[HEAD_BIAS] = torch.zeros(config.projection_dim, dtype=tensors["head.weight"].dtype)
    architecture, arguments = _architecture(vision)
    settings = {
        "architecture": architecture,
        "num_classes": config.projection_dim,
        "num_features": vision.hidden_size,
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "input_size": [3, vision.image_size, vision.image_size],
            "fixed_input_size": True,
            "interpolation": pixels.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "squash" if pixels.resize_mode == "squash" else "center",
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "num_classes": config.projection_dim,
            "first_conv": "stem.conv1.conv" if vision.is_resnet else "patch_embed.proj",
            "classifier": "head.proj" if vision.is_resnet else "head",
        },
    }
    return settings, tensors


def _architecture(vision: HFCLIPVisionConfig | HFCLIPResNetConfig) -> tuple[str, dict[str, Any]]:
    """Return the name of timm's architecture, and the arguments that make it this tower."""
    if isinstance(vision, HFCLIPResNetConfig):
        found = (vision.width, tuple(vision.depths), vision.num_attention_heads, vision.image_size)
        for name, row in RESNETS.items():
            if row == found:
                return name, {}
        raise CheckpointError(
            f"timm has CLIP ResNets of five sizes, {', '.join(RESNETS)}, and the model is none of them"
        )
    if vision.hidden_act not in VITS or vision.layer_norm_eps != 1e-5:
        raise CheckpointError(
            f"timm has no CLIP ViT with the activation {vision.hidden_act} and layer_norm_eps {vision.layer_norm_eps}"
        )
    arguments = {
        "img_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embed_dim": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "num_heads": vision.num_attention_heads,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
    }
    return VITS[vision.hidden_act], arguments


def is_timm(folder: Path) -> bool:
    """Return True for a folder whose config.json is timm's."""
    return _read_config(folder) is not None


def _read_config(folder: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) and isinstance(settings.get("architecture"), str) else None


@dataclass(frozen=True)
class Tower:
    """An image tower, its tensors under the original's keys."""

    state_dict: dict[str, Tensor]
    config: HFCLIPVisionConfig | HFCLIPResNetConfig
    processor: HFCLIPImageProcessor
    assumed: str
    """What the tensors do not show, in words."""


def from_timm(folder: Path, activation: str | None = None, vision_heads: int | None = None) -> Tower:
    """Read an image tower that timm saved.

    Args:
        folder: Its config.json and model.safetensors.
        activation: Of a ViT, where the architecture's name is not to be believed.
        vision_heads: Of the ViT or of the pooling.

    Raises:
        CheckpointError: It is no image tower of a CLIP, or one with a head of another task.
    """
    settings = _read_config(folder) or {}
    name, recorded = settings["architecture"], settings.get("pretrained_cfg") or settings
    found, arguments = ARCHITECTURE.fullmatch(name), settings.get("model_args") or {}
    if found is None:
        raise CheckpointError(f"{folder} holds timm's {name}, which is no image tower of a CLIP: load it with timm")
    tensors = read_checkpoint(folder / "model.safetensors")
    if HEAD_BIAS in tensors and tensors.pop(HEAD_BIAS).count_nonzero():
        raise CheckpointError(f"{folder} has a head with a bias, so it is a classifier's: load it with timm")
    is_vit, is_openai = found[1] is not None, recorded.get("tag") == OPENAI_TAG
    try:
        state_dict = back_to_original(tensors, TIMM_VIT if is_vit else TIMM_RESNET)
        activation = activation or ("quick_gelu" if found[2] or is_openai else "gelu")
        heads = vision_heads or arguments.get("num_heads") or HEADS.get(found[1])
        config = infer_vision_config(state_dict, Variant(activation, vision_heads=heads))
        pixels, kept = (OPENAI_PIXELS, 1.0) if is_openai else _pixels(recorded)
    except (CheckpointError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder} does not describe a CLIP's image tower ({error}): load it with timm"
        ) from error
    processor = pixels.settings(config.image_size)
    if kept < 1:
        processor["size"] = {"shortest_edge": int(config.image_size / kept)}
    assumed = f"{f'activation {activation}, ' if is_vit else ''}pixels ({pixels}, {kept:g} of the side kept)"
    return Tower(state_dict, config, HFCLIPImageProcessor(**processor), assumed)


def _pixels(recorded: dict[str, Any]) -> tuple[Pixels, float]:
    """Return a transform, and the part of the resized side that its crop keeps."""
    mode = recorded.get("crop_mode") or "center"
    modes = {"center": "shortest", "squash": "squash"}
    kept = float(recorded.get("crop_pct") or 1)
    if mode not in modes or not 0 < kept <= 1 or (mode == "squash" and kept < 1):
        raise ValueError(f"crop_mode is {mode!r}, crop_pct {kept:g}")
    named = {name: recorded.get(name) for name in ("mean", "std", "interpolation")}
    return read_pixels({**named, "resize_mode": modes[mode]}), kept


__all__ = ["from_timm", "is_timm", "to_timm"]
