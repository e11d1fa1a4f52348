"""Write a text tower as the file that ComfyUI and Forge load beside a diffusion model, such as clip_l.safetensors."""

from dataclasses import dataclass

from torch import Tensor

from ..model.configuration_hf_clip import HFCLIPConfig
from .errors import CheckpointError

TEXT_KEYS = ("text_model.", "text_projection.")


@dataclass(frozen=True)
class Encoder:
    """A text encoder of ComfyUI, which it knows by the number of layers and builds with these sizes."""

    layers: int
    width: int
    heads: int
    activation: str


COMFYUI_ENCODERS = {
    "clip_l": Encoder(layers=12, width=768, heads=12, activation="quick_gelu"),
    "clip_h": Encoder(layers=24, width=1024, heads=16, activation="gelu"),
    "clip_g": Encoder(layers=32, width=1280, heads=20, activation="gelu"),
}


def comfyui_tensors(config: HFCLIPConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the text tower and its projection, under the names of transformers, which ComfyUI reads.

    Raises:
        CheckpointError: ComfyUI has no text encoder of these sizes.
    """
    text = config.text_config
    found = Encoder(text.num_hidden_layers, text.hidden_size, text.num_attention_heads, text.hidden_act)
    if found not in COMFYUI_ENCODERS.values() or config.projection_dim != text.hidden_size:
        raise CheckpointError(
            f"ComfyUI has no text encoder with {found.layers} layers, {found.width} wide, {found.heads} heads, "
            f"{found.activation}, for {config.projection_dim} dimensions: it has "
            f"{', '.join(COMFYUI_ENCODERS)}, which are the text towers of ViT-L/14, ViT-H-14 and ViT-bigG-14"
        )
    return {key: tensor for key, tensor in tensors.items() if key.startswith(TEXT_KEYS)}


__all__ = ["comfyui_tensors"]
