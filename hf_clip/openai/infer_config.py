"""Infer a configuration from tensor shapes, as the original's `build_model` does."""

from torch import Tensor

from ..model.configuration_hf_clip import (
    SIZE_LIMITS,
    VOCAB_SIZE,
    HFCLIPConfig,
    HFCLIPResNetConfig,
    HFCLIPTextConfig,
    HFCLIPVisionConfig,
)
from .errors import CheckpointError
from .variants import OPENAI, Variant

HEAD_DIM = 64
MAX_LAYERS = SIZE_LIMITS["num_hidden_layers"][1]


class NotCLIPError(CheckpointError):
    """Raised where the tensors are those of another model."""


class _Shapes:
    """Tensor shapes by key; a missing key, or a shape that no CLIP has, raises NotCLIPError."""

    def __init__(self, state_dict: dict[str, Tensor]):
        self.state_dict = state_dict

    def get(self, key: str, axes: int) -> tuple[int, ...]:
        """Return the shape of a tensor with this number of axes, none of them empty."""
        if key not in self.state_dict:
            raise NotCLIPError(f"this is no checkpoint of OpenAI's CLIP architecture: it has no tensor {key!r}")
        shape = tuple(self.state_dict[key].shape)
        if len(shape) != axes or 0 in shape:
            raise NotCLIPError(f"{key!r} has the shape {shape}, in a CLIP it has {axes} axes, none of them empty")
        return shape

    def count(self, prefix: str) -> int:
        """Count the different numbers that follow `prefix`."""
        found = len({key[len(prefix) :].split(".")[0] for key in self.state_dict if key.startswith(prefix)})
        if found > MAX_LAYERS:  # building the model to compare with would take minutes
            raise NotCLIPError(f"there are {found:,} layers under {prefix!r}: no CLIP has over {MAX_LAYERS}")
        return found

    def grid_size(self, key: str) -> int:
        """Return the side of a square grid of positions behind one class position."""
        positions = self.get(key, 2)[0]
        side = round((positions - 1) ** 0.5)
        if side**2 + 1 != positions or side == 0:
            raise NotCLIPError(f"{key!r} has {positions} positions, which is not a square and one")
        return side


def infer_config(state_dict: dict[str, Tensor], variant: Variant = OPENAI) -> HFCLIPConfig:
    """Infer the configuration; activation and head counts, which shapes do not show, come from `variant`.

    Raises:
        NotCLIPError: A tensor whose shape is needed is missing.
        CheckpointError: The variant does not fit the tensors.
    """
    shapes = _Shapes(state_dict)
    embed_dim = shapes.get("text_projection", 2)[1]
    vocab_size, text_width = shapes.get("token_embedding.weight", 2)
    # BOS and EOS are the last two of the original's vocabulary; fine-tunes may have appended tokens
    eos_token_id = min(vocab_size, VOCAB_SIZE) - 1
    text_config = HFCLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=text_width,
        intermediate_size=shapes.get("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        projection_dim=embed_dim,
        num_hidden_layers=shapes.count("transformer.resblocks."),
        num_attention_heads=_heads("text", text_width, variant.text_heads),
        max_position_embeddings=shapes.get("positional_embedding", 2)[0],
        hidden_act=variant.activation,
        bos_token_id=eos_token_id - 1,
        eos_token_id=eos_token_id,
    )
    vision_config = infer_vision_config(state_dict, variant)
    return HFCLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=embed_dim)


def infer_vision_config(
    state_dict: dict[str, Tensor], variant: Variant = OPENAI
) -> HFCLIPVisionConfig | HFCLIPResNetConfig:
    """Infer the configuration of an image tower alone. Raises as `infer_config` does."""
    shapes = _Shapes(state_dict)
    return _vit(shapes, variant) if "visual.proj" in state_dict else _resnet(shapes, variant)


def _vit(shapes: _Shapes, variant: Variant) -> HFCLIPVisionConfig:
    width, _, patch_size, _ = shapes.get("visual.conv1.weight", 4)
    return HFCLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shapes.get("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        projection_dim=shapes.get("visual.proj", 2)[1],
        num_hidden_layers=shapes.count("visual.transformer.resblocks."),
        num_attention_heads=_heads("vision", width, variant.vision_heads),
        hidden_act=variant.activation,
        image_size=patch_size * shapes.grid_size("visual.positional_embedding"),
        patch_size=patch_size,
    )


def _resnet(shapes: _Shapes, variant: Variant) -> HFCLIPResNetConfig:
    width = shapes.get("visual.layer1.0.conv1.weight", 4)[0]
    return HFCLIPResNetConfig(
        width=width,
        depths=[shapes.count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
        projection_dim=shapes.get("visual.attnpool.c_proj.weight", 2)[0],
        num_attention_heads=_heads("vision", width * 32, variant.vision_heads),
        image_size=32 * shapes.grid_size("visual.attnpool.positional_embedding"),
    )


def _heads(tower: str, width: int, count: int | None) -> int:
    if count is None:
        count = max(1, width // HEAD_DIM)
    if not isinstance(count, int) or count < 1 or width % count:
        raise CheckpointError(f"a {tower} tower {width} channels wide cannot have {count} heads: pass the right number")
    return count


__all__ = ["NotCLIPError", "infer_config", "infer_vision_config"]
