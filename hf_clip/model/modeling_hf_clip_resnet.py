"""CLIP's modified ResNet and its attention pooling (paper section 2.4, original `clip/model.py`)."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .configuration_hf_clip import HFCLIPResNetConfig
from .modeling_hf_clip_base import (
    HFCLIPVisionTower,
    check_images,
    eager_attention_forward,
    interpolate_positions,
    multi_head_attention,
    unexpected_keys,
)

logger = logging.get_logger(__name__)

EXPANSION = 4
HALF = (torch.float16, torch.bfloat16)
STRIDE = 32  # pixels of an image for each position of the last feature map


class HFCLIPBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that keeps its statistics in training mode too while `frozen`; gain and bias stay trainable."""

    frozen = False

    def __init__(self, channels: int, eps: float):
        super().__init__(channels, eps, dtype=torch.float32)

    def train(self, mode: bool = True) -> "HFCLIPBatchNorm2d":
        """Switch to training mode unless frozen."""
        return super().train(mode and not self.frozen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled() and not self.weight.requires_grad:
            logger.warning_once(
                "BatchNorm statistics move although the BatchNorms are not trained, and adapters are saved without "
                "them: call freeze_batch_norm(model)"
            )
        if self.weight.dtype == x.dtype or (self.weight.dtype == torch.float32 and x.dtype in HALF):
            return super().forward(x)
        if x.dtype == torch.float64 and not self.training:  # float32 statistics, as from_pretrained keeps them
            mean, variance, weight, bias = (
                t.double() for t in (self.running_mean, self.running_var, self.weight, self.bias)
            )
            return F.batch_norm(x, mean, variance, weight, bias, eps=self.eps)
        # no kernel takes these two dtypes, which autocast to another half dtype brings together
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def freeze_batch_norm(model: nn.Module, frozen: bool = True) -> nn.Module:
    """Freeze the statistics of a model's BatchNorms, in training mode too; no weight or key changes.

    Args:
        model: Any module with hf_clip ResNets in it; others are left alone.
        frozen: False lets the statistics move again.

    Returns:
        The same model.
    """
    for module in model.modules():
        if isinstance(module, HFCLIPBatchNorm2d):
            module.frozen = frozen
            module.train(model.training)
    return model


def average_pool(stride: int) -> nn.Module:
    return nn.AvgPool2d(stride) if stride > 1 else nn.Identity()


class HFCLIPResNetStem(nn.Module):
    """Three convolutions and an average pool: a quarter of the height and width."""

    def __init__(self, config: HFCLIPResNetConfig):
        super().__init__()
        width, eps = config.width, config.batch_norm_eps
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = HFCLIPBatchNorm2d(width // 2, eps)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = HFCLIPBatchNorm2d(width // 2, eps)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = HFCLIPBatchNorm2d(width, eps)
        self.pool = nn.AvgPool2d(2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = pixel_values.to(self.conv1.weight.dtype)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, 3, H, W) -> (B, C / 2, H / 2, W / 2)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)  # (B, C / 2, H / 2, W / 2) -> (B, C, H / 2, W / 2)
        return self.pool(x)  # (B, C, H / 2, W / 2) -> (B, C, H / 4, W / 4)


class HFCLIPResNetShortcut(nn.Module):
    """Projection in place of the identity, in a block that changes the shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, eps: float):
        super().__init__()
        self.pool = average_pool(stride)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = HFCLIPBatchNorm2d(out_channels, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(self.pool(x)))


class HFCLIPResNetBottleneck(GradientCheckpointingLayer):
    """Bottleneck block whose stride is an average pool before its last convolution, against aliasing."""

    def __init__(self, in_channels: int, channels: int, stride: int, eps: float):
        super().__init__()
        out_channels = channels * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = HFCLIPBatchNorm2d(channels, eps)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = HFCLIPBatchNorm2d(channels, eps)
        self.pool = average_pool(stride)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = HFCLIPBatchNorm2d(out_channels, eps)
        self.shortcut = (
            HFCLIPResNetShortcut(in_channels, out_channels, stride, eps)
            if stride > 1 or in_channels != out_channels
            else nn.Identity()
        )

    def initialize_parameters(self) -> None:
        """Zero the last gain, so that a fresh block is the identity."""
        init.zeros_(self.bn3.weight)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(hidden_states)), inplace=True)  # (B, in, H, W) -> (B, C, H, W)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.pool(x)  # (B, C, H, W) -> (B, C, H / stride, W / stride)
        x = self.bn3(self.conv3(x))  # (B, C, ...) -> (B, 4 * C, ...)
        return F.relu(x + self.shortcut(hidden_states), inplace=True)


class HFCLIPResNetStage(nn.Sequential):
    """Bottlenecks at one resolution; the first changes the shape."""

    def __init__(self, in_channels: int, channels: int, depth: int, stride: int, eps: float):
        super().__init__(
            HFCLIPResNetBottleneck(in_channels, channels, stride, eps),
            *(HFCLIPResNetBottleneck(channels * EXPANSION, channels, 1, eps) for _ in range(depth - 1)),
        )


class HFCLIPAttentionPooling(nn.Module):
    """Attention whose single query is the mean of all positions; its output is the image embedding.

    Keys and values are the mean and all positions.
    """

    def __init__(self, config: HFCLIPResNetConfig):
        super().__init__()
        self.config = config
        self.is_causal = False
        width = config.hidden_size
        self.position_embedding = nn.Embedding(config.grid_size**2 + 1, width, dtype=torch.float32)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, config.projection_dim)

    def initialize_parameters(self) -> None:
        for module in (self.position_embedding, self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)

    def positioned(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Flatten (B, C, H, W) into positions (1 + HW, B, C), their mean first, and add position embeddings."""
        grid = (feature_map.shape[2], feature_map.shape[3])
        positions = self.position_embedding(torch.arange(self.config.grid_size**2 + 1, device=feature_map.device))
        if grid != (self.config.grid_size, self.config.grid_size):
            positions = interpolate_positions(positions, grid)
        # positions before images, as in the original: the order of rows can change the bits of a product
        x = feature_map.flatten(2).permute(2, 0, 1)  # (B, C, H, W) -> (HW, B, C)
        x = torch.cat([x.mean(0, keepdim=True), x])  # (HW, B, C) -> (1 + HW, B, C)
        return x + positions[:, None].to(x.dtype)

    def forward(
        self, feature_map: torch.Tensor, dense: bool = False, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pool (B, C, H, W) into embeddings (B, projection_dim) and, if eager, weights (B, heads, 1, 1 + HW).

        With `dense`, embed each position as if all heads attended to that alone: (B, D, H, W).
        """
        x = self.positioned(feature_map)
        if dense:
            embeds = self.out_proj(self.v_proj(x[1:]))  # (1 + HW, B, C) -> (HW, B, D)
            return embeds.permute(1, 2, 0).unflatten(2, feature_map.shape[2:]), None  # (HW, B, D) -> (B, D, H, W)
        query, key, value = self.q_proj(x[:1]), self.k_proj(x), self.v_proj(x)
        query, key, value = (y.transpose(0, 1) for y in (query, key, value))  # (1 + HW, B, C) -> (B, 1 + HW, C)
        # set_attn_implementation looks for this call in the file of the model's class
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        pooled, weights = multi_head_attention(self, query, key, value, attend=attend, **kwargs)
        return self.out_proj(pooled[:, 0]), weights  # (B, 1, C) -> (B, D)


class HFCLIPResNetModel(HFCLIPVisionTower):
    """Encode images with CLIP's modified ResNet and its attention pooling (paper section 2.4).

    `last_hidden_state` is the dense feature map (B, 32 * width, H / 32, W / 32), `pooler_output` the image embedding
    (B, projection_dim). `hidden_states` are the five feature maps after the stem and after each stage, as in
    transformers' own ResNets; `attentions`, from eager attention, are the weights of the pooling. Gradient
    checkpointing runs each BatchNorm twice in a training step, so its running statistics move twice.

    Args:
        config: Sizes of the tower.

    Raises:
        ValueError: The configuration is a ViT's.

    Example:
        >>> tower = HFCLIPResNetModel.from_pretrained("clip-rn50")
        >>> feature_map = tower.dense_features(pixel_values)
    """

    _auto_class = "AutoModel"
    config_class = HFCLIPResNetConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["HFCLIPResNetStem", "HFCLIPResNetBottleneck", "HFCLIPAttentionPooling"]
    _keep_in_fp32_modules_strict = [
        "position_embedding",
        # each by name, or the integer num_batches_tracked would be caught
        *(f"{bn}.{x}" for bn in ("bn1", "bn2", "bn3", "bn") for x in ("weight", "bias", "running_mean", "running_var")),
    ]
    _keys_to_ignore_on_load_unexpected = unexpected_keys("text_model", "text_projection", "logit_scale")

    def __init__(self, config: HFCLIPResNetConfig):
        if config.model_type != HFCLIPResNetConfig.model_type:
            raise ValueError(f"HFCLIPResNetModel takes a ResNet, not {config.model_type!r}: use HFCLIPVisionModel")
        super().__init__(config)
        self.stem = HFCLIPResNetStem(config)
        channels = [config.width * 2**stage for stage in range(4)]
        inputs = [config.width, *(c * EXPANSION for c in channels[:-1])]
        self.stages = nn.ModuleList(
            HFCLIPResNetStage(*sizes, config.batch_norm_eps)
            for sizes in zip(inputs, channels, config.depths, (1, 2, 2, 2), strict=True)
        )
        self.attention_pool = HFCLIPAttentionPooling(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.stem.conv1

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode `pixel_values` (B, 3, H, W), normalized by the processor."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions

        feature_maps = self.feature_maps(pixel_values, interpolate_pos_encoding)
        feature_map = feature_maps[-1]  # (B, 3, H, W) -> (B, C, H / 32, W / 32)
        # (B, C, H / 32, W / 32) -> (B, D)
        pooled, weights = self.attention_pool(feature_map, output_attentions=output_attentions, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=feature_map,
            pooler_output=pooled,
            hidden_states=tuple(feature_maps) if output_hidden_states else None,
            attentions=tuple(w for w in [weights] if w is not None) if output_attentions else None,
        )

    def feature_maps(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> list[torch.Tensor]:
        """Return the feature maps (B, C, H, W) after the stem and after each stage."""
        check_images(pixel_values, self.config, STRIDE, interpolate_pos_encoding)
        feature_maps = [self.stem(pixel_values)]  # (B, 3, H, W) -> (B, width, H / 4, W / 4)
        for stage in self.stages:  # to 4, 8, 16 and 32 times the width, at strides 4, 8, 16 and 32
            feature_maps.append(stage(feature_maps[-1]))
        return feature_maps

    def dense_embeds(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Embed each position of the last feature map as if the pooling attended to it alone: (B, D, H, W)."""
        return self.attention_pool(self.feature_maps(pixel_values, interpolate_pos_encoding)[-1], dense=True)[0]

    def feature_map(self, last_hidden_state: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return `last_hidden_state`, which is a feature map already."""
        return last_hidden_state


__all__ = ["HFCLIPResNetModel", "freeze_batch_norm"]
