"""Settings that a state dict does not record: activation and head counts, from open_clip's names or config file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .published import OPEN_CLIP_CONFIG


@dataclass(frozen=True)
class Variant:
    """Settings that leave no trace in tensor shapes. Without a count, heads are 64 channels wide."""

    activation: str = "quick_gelu"
    vision_heads: int | None = None
    text_heads: int | None = None

    def __str__(self) -> str:
        heads = {"vision": self.vision_heads, "text": self.text_heads}
        counted = [f"{count} {tower} heads" for tower, count in heads.items() if count]
        return ", ".join([f"activation {self.activation}", *counted, *(["heads of 64 channels"] * (len(counted) < 2))])


OPENAI = Variant()
_GELU = Variant("gelu")
# by open_clip's names; the suffix "-quickgelu" changes the activation
OPEN_CLIP = {
    "ViT-B-32": _GELU,
    "ViT-B-32-256": _GELU,
    "ViT-B-16": _GELU,
    "ViT-L-14": _GELU,
    "ViT-L-14-336": _GELU,
    "ViT-H-14": Variant("gelu", vision_heads=16, text_heads=16),
    "ViT-H-14-378": Variant("gelu", vision_heads=16, text_heads=16),
    "ViT-g-14": Variant("gelu", vision_heads=16, text_heads=16),
    "ViT-bigG-14": Variant("gelu", vision_heads=16, text_heads=20),
    "ViT-B-16-plus-240": _GELU,
    "RN50": _GELU,
    "RN101": _GELU,
    "RN50x4": _GELU,
    "RN50x16": _GELU,
    "RN50x64": _GELU,
}
# parts of open_clip's names, and why hf_clip cannot express these architectures
OTHER_ARCHITECTURES = {
    "worldwide": "a MetaCLIP 2, which has XLM-V's tokenizer",
    "CLIPA": "a CLIPA, which averages image positions and reads a text at the end of its padding",
    "SigLIP": "a SigLIP, which scores with a bias",
    "EVA": "an EVA-CLIP, which has another image tower",
    "coca": "a CoCa, which has a text decoder",
    "MobileCLIP": "a MobileCLIP, which has another image tower",
    "convnext": "a CLIP with a ConvNeXt",
    "roberta": "a CLIP with a RoBERTa",
    "nllb": "a CLIP with NLLB's text tower",
}
# of those, the ones that `load_clip` reads in transformers' layout, as classes of transformers
IN_TRANSFORMERS = {"worldwide": "facebook/metaclip-2-worldwide-huge-quickgelu"}
QUICK_GELU_SUFFIX = "-quickgelu"

# fields that change the forward pass in ways hf_clip does not implement, with the one value that does not
VISION_FIELDS = {
    "timm_model_name": None,
    "attentional_pool": False,
    "global_average_pool": False,
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "input_patchnorm": False,
    "no_ln_pre": False,
    "ls_init_value": None,
    "pos_embed_type": "learnable",
}
TEXT_FIELDS = {
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "no_causal_mask": False,
    "embed_cls": False,
    "pool_type": "argmax",
    "ls_init_value": None,
    "proj_type": "linear",
    "proj_bias": False,
}


def named_variant(name: str) -> Variant:
    """Look up an architecture by its name in open_clip.

    Raises:
        CheckpointError: The name is not known.
    """
    base = name.removesuffix(QUICK_GELU_SUFFIX)
    for part, kind in OTHER_ARCHITECTURES.items():
        if part in base:
            copy = f", or its copy for transformers, such as {IN_TRANSFORMERS[part]}" if part in IN_TRANSFORMERS else ""
            raise CheckpointError(f"{name!r} is {kind}: load it with open_clip{copy}")
    if base not in OPEN_CLIP:
        known = ", ".join(OPEN_CLIP)
        raise CheckpointError(
            f"{name!r} is no architecture that hf_clip knows: choose from {known}, or pass its settings"
        )
    variant = OPEN_CLIP[base]
    return Variant("quick_gelu", variant.vision_heads, variant.text_heads) if base != name else variant


def recorded_variant(checkpoint: Path) -> Variant | None:
    """Read the open_clip_config.json beside `checkpoint`; None if there is no such file.

    Raises:
        CheckpointError: It describes a model that hf_clip cannot express, or is damaged.
    """
    file = checkpoint.with_name(OPEN_CLIP_CONFIG)
    if not file.is_file():
        return None
    try:
        model = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
        vision, text = model["vision_cfg"], model["text_cfg"]
        _refuse(file, "vision", vision, VISION_FIELDS)
        _refuse(file, "text", text, TEXT_FIELDS)
        width, head_width = vision.get("width", 768), vision.get("head_width", 64)
        return Variant(
            activation="quick_gelu" if model.get("quick_gelu") else "gelu",
            vision_heads=None if isinstance(vision.get("layers"), list) else width // head_width,
            text_heads=text.get("heads", 8),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file} does not describe a CLIP ({error!r}): remove it, or repair it") from error


def choose_variant(
    recorded: Variant | None,
    like: str | None = None,
    activation: str | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> Variant:
    """Combine settings: those given, else those of the architecture `like`, else the recorded ones, else OpenAI's."""
    base = named_variant(like) if like else recorded or OPENAI
    given = {"activation": activation, "vision_heads": vision_heads, "text_heads": text_heads}
    settings = {field.name: getattr(base, field.name) for field in fields(base)}
    return Variant(**settings | {name: value for name, value in given.items() if value is not None})


def _refuse(file: Path, tower: str, settings: Mapping[str, Any], harmless: Mapping[str, Any]) -> None:
    for name, value in harmless.items():
        if settings.get(name, value) != value:
            raise CheckpointError(
                f"{file} describes a {tower} tower with {name} {settings[name]!r}, which hf_clip cannot express: use "
                "open_clip for this model"
            )


__all__ = ["OPENAI", "OPEN_CLIP", "Variant", "choose_variant", "named_variant", "recorded_variant"]
