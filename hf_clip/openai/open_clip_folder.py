"""Write the open_clip_config.json from which open_clip builds a model and its transform."""

from typing import Any

from transformers import PreTrainedConfig

from ..model.configuration_hf_clip import HFCLIPConfig
from .errors import CheckpointError
from .pixels import Pixels

LAYER_NORM_EPS = 1e-5
ACTIVATIONS = ("quick_gelu", "gelu")


def open_clip_config(config: HFCLIPConfig, pixels: Pixels) -> dict[str, Any]:
    """Describe a model and its pixels as open_clip does, so that `recorded_variant` and `recorded_pixels` read it back.

    Raises:
        CheckpointError: open_clip cannot express the model.
    """
    text, vision = config.text_config, config.vision_config
    transformers = (text,) if vision.is_resnet else (text, vision)
    activations = {tower.hidden_act for tower in transformers}
    if len(activations) > 1 or not activations <= {*ACTIVATIONS}:
        raise CheckpointError(
            f"open_clip has one activation for both towers, {' or '.join(ACTIVATIONS)}, the model's are "
            f"{', '.join(sorted(activations))}: keep it in the hf_clip layout"
        )
    if any(tower.layer_norm_eps != LAYER_NORM_EPS for tower in transformers):
        raise CheckpointError(f"open_clip has layer_norm_eps {LAYER_NORM_EPS}: keep the model in the hf_clip layout")
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": activations == {"quick_gelu"},
            "vision_cfg": _resnet(vision) if vision.is_resnet else _vit(vision),
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
            },
        },
        "preprocess_cfg": {
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "interpolation": pixels.interpolation,
            "resize_mode": pixels.resize_mode,
        },
    }


def _vit(vision: PreTrainedConfig) -> dict[str, Any]:
    return {
        "image_size": vision.image_size,
        "layers": vision.num_hidden_layers,
        "width": vision.hidden_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "patch_size": vision.patch_size,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
    }


def _resnet(vision: PreTrainedConfig) -> dict[str, Any]:
    return {
        "image_size": vision.image_size,
        "layers": list(vision.depths),
        "width": vision.width,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "patch_size": None,
    }


__all__ = ["open_clip_config"]
