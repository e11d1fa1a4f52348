"""From the shapes of an original checkpoint to its configuration, as the original's `build_model`."""

from torch import Tensor

from ..configuration_hf_clip import HFCLIPConfig, HFCLIPResNetConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from .errors import CheckpointError

HEAD_DIM = 64
VOCAB_SIZE = 49408


class NotCLIPError(CheckpointError):
    """The tensors are those of another model."""


class _Shapes:
    """Shapes by name; an absent one says what was expected of the file."""

    def __init__(self, state_dict: dict[str, Tensor]):
        self.state_dict = state_dict

    def __getitem__(self, key: str) -> tuple[int, ...]:
        if key not in self.state_dict:
            raise NotCLIPError(f"This is no checkpoint of OpenAI's CLIP architecture: it has no tensor {key!r}.")
        return tuple(self.state_dict[key].shape)

    def count(self, prefix: str) -> int:
        """How many different numbers follow `prefix`."""
        return len({key[len(prefix) :].split(".")[0] for key in self.state_dict if key.startswith(prefix)})

    def grid_size(self, key: str) -> int:
        """The side of a square grid of positions behind one class position."""
        side = round((self[key][0] - 1) ** 0.5)
        if side**2 + 1 != self[key][0]:
            raise NotCLIPError(f"{key!r} has {self[key][0]} positions, which is not a square and one.")
        return side


def infer_config(state_dict: dict[str, Tensor]) -> HFCLIPConfig:
    """Raises NotCLIPError where a tensor that tells a size is missing."""
    shapes = _Shapes(state_dict)
    embed_dim = shapes["text_projection"][1]
    vocab_size, text_width = shapes["token_embedding.weight"]
    # the two special tokens end the original's vocabulary; fine-tunes may have added others behind
    eos_token_id = min(vocab_size, VOCAB_SIZE) - 1
    text_config = HFCLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=text_width,
        intermediate_size=text_width * 4,
        projection_dim=embed_dim,
        num_hidden_layers=shapes.count("transformer.resblocks."),
        num_attention_heads=text_width // HEAD_DIM,
        max_position_embeddings=shapes["positional_embedding"][0],
        bos_token_id=eos_token_id - 1,
        eos_token_id=eos_token_id,
    )
    vision_config = _vit(shapes) if "visual.proj" in state_dict else _resnet(shapes)
    return HFCLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=embed_dim)


def _vit(shapes: _Shapes) -> HFCLIPVisionConfig:
    width, _, patch_size, _ = shapes["visual.conv1.weight"]
    return HFCLIPVisionConfig(
        hidden_size=width,
        intermediate_size=width * 4,
        projection_dim=shapes["visual.proj"][1],
        num_hidden_layers=shapes.count("visual.transformer.resblocks."),
        num_attention_heads=width // HEAD_DIM,
        image_size=patch_size * shapes.grid_size("visual.positional_embedding"),
        patch_size=patch_size,
    )


def _resnet(shapes: _Shapes) -> HFCLIPResNetConfig:
    width = shapes["visual.layer1.0.conv1.weight"][0]
    return HFCLIPResNetConfig(
        width=width,
        depths=[shapes.count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
        projection_dim=shapes["visual.attnpool.c_proj.weight"][0],
        num_attention_heads=width * 32 // HEAD_DIM,
        image_size=32 * shapes.grid_size("visual.attnpool.positional_embedding"),
    )


__all__ = ["NotCLIPError", "infer_config"]
