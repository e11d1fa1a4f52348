"""Configurations: a text tower, a vision tower (ViT or modified ResNet), and the two together."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from packaging.version import Version

try:
    from transformers import GenerationConfig, PreTrainedConfig
except ImportError as error:
    from .requirement_hf_clip import older_transformers

    raise older_transformers() from error
from transformers.utils import logging

logger = logging.get_logger(__name__)

HF_CLIP_VERSION = "0.2.0"
"""The version that config.json names as its writer; this file travels without the package that knows its own."""

# stock configs from before 2023 hold this id, and their texts end at the highest id
LEGACY_EOS_TOKEN_ID = 2
VOCAB_SIZE = 49408

# least and most: a folder may come from a stranger, and its sizes are allocated before its weights are read
SIZE_LIMITS = {
    "vocab_size": (1, 10**7),
    "width": (1, 10**4),  # a ResNet's hidden_size is 32 times as much
    "hidden_size": (1, 10**6),
    "intermediate_size": (1, 10**6),
    "projection_dim": (1, 10**6),
    "num_hidden_layers": (0, 500),
    "num_attention_heads": (1, 10**5),
    "max_position_embeddings": (1, 10**6),
    "num_channels": (1, 10**4),
    "image_size": (1, 10**5),
    "patch_size": (1, 10**5),
}
MAX_PARAMETERS = 10**11

STOCK_TYPES = {
    "clip": "hf_clip",
    "clip_text_model": "hf_clip_text_model",
    "clip_vision_model": "hf_clip_vision_model",
}
# fields of config.json that transformers reads beside those of its base class
READ_BY_TRANSFORMERS = {
    *("_attn_implementation_internal", "_commit_hash", "_experts_implementation_internal", "_name_or_path"),
    *("attn_implementation", "auto_map", "experts_implementation", "model_type", "name_or_path", "num_labels"),
    *("output_attentions", "per_layer_config", "quantization_config", "torch_dtype", "use_cache"),
}


def check_is_folder(path: str | os.PathLike | None) -> None:
    """Raise ValueError, with the way out, for a file where `from_pretrained` takes a folder or a Hub id."""
    if isinstance(path, str | os.PathLike) and os.path.isfile(path) and not os.fspath(path).endswith(".json"):
        raise ValueError(
            f"{os.fspath(path)} is a file, from_pretrained loads folders: use hf_clip.load_clip for a checkpoint file, "
            "or `hf-clip convert` to make a folder of it"
        )


def _from_stock(config: dict[str, Any]) -> dict[str, Any]:
    """Translate the config.json of a stock CLIP folder; return any other unchanged."""
    model_type = config.get("model_type")
    if model_type not in STOCK_TYPES:
        return config
    # `*_config_dict` repeats the sub-configs; fields that only stock classes read are no news
    config = {key: value for key, value in config.items() if not key.endswith("_config_dict")}
    config |= {"model_type": STOCK_TYPES[model_type], "hf_clip_version": HF_CLIP_VERSION}
    if model_type == "clip":
        for key, part in (("text_config", "clip_text_model"), ("vision_config", "clip_vision_model")):
            config[key] = _from_stock({"model_type": part, **(config.get(key) or {})})
    elif config.get("eos_token_id") == LEGACY_EOS_TOKEN_ID:
        if config.get("vocab_size", VOCAB_SIZE) == VOCAB_SIZE:
            # the published stock configs carry the ids of another model (transformers#24773)
            config["bos_token_id"], config["eos_token_id"] = VOCAB_SIZE - 2, VOCAB_SIZE - 1
        else:
            config["eos_token_id"] = None  # the stock model reads such texts at their highest id
    return config


class HFCLIPBaseConfig(PreTrainedConfig):
    """Base class of the configurations, which read config.json of hf_clip folders and of stock CLIP folders."""

    _auto_class = "AutoConfig"

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        check_is_folder(pretrained_model_name_or_path)
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        _check_model_type(config, cls, pretrained_model_name_or_path)
        config, part = _from_stock(config), cls.base_config_key
        if part and part in config:  # a tower of a joint folder computes in the dtype of the folder
            dtype = config.get("dtype") or config.get("torch_dtype")
            config = {**config, part: (config[part] or {}) | ({"dtype": dtype} if dtype else {})}
        return config, kwargs

    def __post_init__(self, **kwargs):
        version = kwargs.pop("hf_clip_version", None)
        unread = sorted(kwargs.keys() - READ_BY_TRANSFORMERS - GenerationConfig._get_default_generation_params().keys())
        if version is not None and Version(version) > Version(HF_CLIP_VERSION):
            if unread:
                raise ValueError(
                    f"config.json was written by hf_clip {version} and has {', '.join(unread)}, which hf_clip "
                    f"{HF_CLIP_VERSION} does not know: update hf_clip"
                )
            logger.warning_once(
                f"config.json was written by hf_clip {version}, and the code of hf_clip {HF_CLIP_VERSION} runs: update "
                "hf_clip for the same results"
            )
        if unread and version is None:
            logger.warning(f"{type(self).__name__} has no field {', '.join(unread)}: nothing reads it")
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, and the version that writes them."""
        return {**super().to_dict(), "hf_clip_version": HF_CLIP_VERSION}


class HFCLIPVisionBaseConfig(HFCLIPBaseConfig):
    """Base class of the vision configurations; its `from_pretrained` returns the class of the folder's family."""

    base_config_key = "vision_config"

    @property
    def is_resnet(self) -> bool:
        """True for the modified ResNet, False for the Vision Transformer."""
        # by name: under remote code one class can exist twice
        return self.model_type == HFCLIPResNetConfig.model_type

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        config, _ = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        family = _vision_family(config.get("vision_config", config))
        return super(HFCLIPVisionBaseConfig, family).from_pretrained(pretrained_model_name_or_path, **kwargs)


@strict
class HFCLIPTextConfig(HFCLIPBaseConfig):
    """Configure the causal text Transformer (paper section 2.4). The defaults are ViT-B/32's.

    Args:
        hidden_size: Width of the Transformer.
        projection_dim: Size of the embedding space that it shares with the images.
        max_position_embeddings: Context length in tokens.
        eos_token_id: Id of the token where a text ends and is pooled.

    Example:
        ```python
        config = HFCLIPTextConfig(hidden_size=256, num_attention_heads=4)
        ```
    """

    model_type = "hf_clip_text_model"
    base_config_key = "text_config"

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: int | float = 0.0
    pad_token_id: int | None = 0
    bos_token_id: int | None = 49406
    eos_token_id: int | None = 49407

    def validate_architecture(self):
        _check_heads(self)
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(
                f"eos_token_id {self.eos_token_id} is outside the vocabulary of {self.vocab_size} tokens, so no text "
                "would have an end: give both"
            )


@strict
class HFCLIPVisionConfig(HFCLIPVisionBaseConfig):
    """Configure the Vision Transformer (paper section 2.4). The defaults are ViT-B/32's.

    Args:
        hidden_size: Width of the Transformer.
        projection_dim: Size of the embedding space that it shares with the texts.
        image_size: Height and width of the images in pixels.
        patch_size: Height and width of a patch in pixels.

    Example:
        ```python
        config = HFCLIPVisionConfig(image_size=384, patch_size=16)
        ```
    """

    model_type = "hf_clip_vision_model"

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: int | float = 0.0

    def validate_architecture(self):
        _check_heads(self)
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than one patch ({self.patch_size})")

    @property
    def grid_size(self) -> int:
        return self.image_size // self.patch_size


@strict
class HFCLIPResNetConfig(HFCLIPVisionBaseConfig):
    """Configure the modified ResNet (paper section 2.4). The defaults are RN50's.

    Args:
        width: Number of channels after the stem.
        depths: Number of bottlenecks in each of the four stages.
        projection_dim: Size of the embedding space that it shares with the texts.
        num_attention_heads: Number of heads of the attention pooling.
        image_size: Height and width of the images in pixels.

    Example:
        ```python
        config = HFCLIPResNetConfig(depths=(3, 4, 23, 3), projection_dim=512)  # RN101
        ```
    """

    model_type = "hf_clip_resnet"

    width: int = 64
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    projection_dim: int = 1024
    num_attention_heads: int = 32
    num_channels: int = 3
    image_size: int = 224
    batch_norm_eps: float = 1e-5

    def validate_architecture(self):
        _check_heads(self)
        if len(self.depths) != 4:
            raise ValueError(
                f"depths has {len(self.depths)} numbers {tuple(self.depths)}, a ResNet has four stages: give four"
            )
        if self.image_size < 32:
            raise ValueError(f"image_size {self.image_size} is smaller than the stride of the network (32)")

    @property
    def hidden_size(self) -> int:
        """Number of channels of the last feature map."""
        return self.width * 32

    @property
    def grid_size(self) -> int:
        return self.image_size // 32


@strict
class HFCLIPConfig(HFCLIPBaseConfig):
    """Configure both towers.

    Args:
        text_config: Configuration of the text tower, or its fields.
        vision_config: Configuration of the vision tower, or its fields; `model_type` names the family (default: ViT).
        projection_dim: Size of the shared embedding space; taken from the towers if None.
        logit_scale_init_value: Logarithm of the factor between cosine similarities and logits, in a new model.

    Raises:
        ValueError: If the towers project to different sizes and `projection_dim` does not decide.

    Example:
        ```python
        config = HFCLIPConfig(vision_config=HFCLIPResNetConfig(projection_dim=512))
        ```
    """

    model_type = "hf_clip"
    sub_configs = {"text_config": HFCLIPTextConfig, "vision_config": HFCLIPVisionConfig}
    # an evaluation by Trainer collects the embeddings only
    keys_to_ignore_at_inference = ["logits_per_image", "logits_per_text", "text_model_output", "vision_model_output"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int | None = None
    logit_scale_init_value: float | int = 2.659260036932778  # log(1 / 0.07), paper section 2.5

    def __post_init__(self, **kwargs):
        version = {key: value for key, value in kwargs.items() if key == "hf_clip_version"}
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = HFCLIPTextConfig(**(version | _from_stock(self.text_config or {})))
        if not isinstance(self.vision_config, PreTrainedConfig):
            vision_config = version | _from_stock(self.vision_config or {})
            self.vision_config = _vision_family(vision_config)(**vision_config)
        if self.projection_dim is None:
            self.projection_dim = self.vision_config.projection_dim
            if self.text_config.projection_dim != self.projection_dim:
                raise ValueError(
                    f"the towers project to different sizes: text {self.text_config.projection_dim}, "
                    f"vision {self.projection_dim}; give HFCLIPConfig the projection_dim you want"
                )
        self.text_config.projection_dim = self.vision_config.projection_dim = self.projection_dim
        super().__post_init__(**kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the fields for config.json; each tower lists only the fields that differ from its defaults."""
        config = super().to_diff_dict()
        for key in self.sub_configs:
            config[key] = getattr(self, key).to_diff_dict()
            for version in ("transformers_version", "hf_clip_version"):
                config[key].pop(version, None)
        if "AutoModel" in config.get("auto_map", {}):
            # transformers notes one Auto class for the saved one; pipelines ask for these
            code = config["auto_map"]["AutoModel"]
            config["auto_map"]["AutoModelForZeroShotImageClassification"] = code
            classifier = f"{code.rpartition('.')[0]}.HFCLIPForImageClassification"
            config["auto_map"]["AutoModelForImageClassification"] = classifier
        return config


def _check_model_type(config: dict[str, Any], cls: type[PreTrainedConfig], source: str | os.PathLike) -> None:
    """Raise ValueError for the folder of another model, whose fields transformers would take with a warning."""
    ours = {*STOCK_TYPES, *STOCK_TYPES.values(), HFCLIPResNetConfig.model_type, cls.model_type}
    if (model_type := config.get("model_type")) is not None and model_type not in ours:
        raise ValueError(
            f"{source} holds a {model_type!r}, not a CLIP of OpenAI's architecture with its vocabulary: load it with "
            "transformers' own classes"
        )


def _check_sizes(config: PreTrainedConfig) -> None:
    """Raise ValueError for sizes that no model has, before tensors of these sizes are made."""
    for name, (least, most) in SIZE_LIMITS.items():
        if (value := getattr(config, name, None)) is not None and not least <= value <= most:
            raise ValueError(f"{name} is {str(value)[:20]}, give {least:,} to {most:,}")
    depths, (_, most) = getattr(config, "depths", ()), SIZE_LIMITS["num_hidden_layers"]
    if not all(1 <= depth <= most for depth in depths):
        raise ValueError(f"depths are {str([*depths])[:80]}, give 1 to {most:,} for each")
    width, layers = config.hidden_size, sum(depths) or config.num_hidden_layers
    inner = 2 * getattr(config, "intermediate_size", 0) + 4 * width
    positions = getattr(config, "max_position_embeddings", 0) or config.grid_size**2
    rows = positions + getattr(config, "vocab_size", 0) + getattr(config, "num_channels", 0) + config.projection_dim
    if (count := width * (layers * inner + rows)) > MAX_PARAMETERS:
        raise ValueError(f"the sizes make about {count:,} parameters, give at most {MAX_PARAMETERS:,}")


def _check_heads(config: PreTrainedConfig) -> None:
    _check_sizes(config)
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"the width {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}"
        )


def _vision_family(config: dict[str, Any]) -> type[HFCLIPVisionBaseConfig]:
    families = {family.model_type: family for family in (HFCLIPVisionConfig, HFCLIPResNetConfig)}
    model_type = config.get("model_type", HFCLIPVisionConfig.model_type)
    if model_type not in families:
        raise ValueError(f"unknown vision model_type {model_type!r}: hf_clip has {' and '.join(families)}")
    return families[model_type]


__all__ = ["HFCLIPConfig", "HFCLIPResNetConfig", "HFCLIPTextConfig", "HFCLIPVisionConfig"]
