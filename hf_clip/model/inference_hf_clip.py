"""Inference-only replacements for model layers. Outputs equal the exact layers up to rounding.

Each replacement is a subclass of the class that it replaces, and an exact module becomes one in place. The stored
weights of some differ.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import PreTrainedModel
from transformers.activations import QuickGELUActivation
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from .modeling_hf_clip import (
    HFCLIPMLP,
    HFCLIPAttention,
    HFCLIPEncoderLayer,
    HFCLIPPatchEmbedding,
    HFCLIPTextModel,
    HFCLIPTransformerModel,
    HFCLIPVisionModel,
)
from .modeling_hf_clip_base import HFCLIPPreTrainedModel, check_texts
from .modeling_hf_clip_resnet import (
    HFCLIPAttentionPooling,
    HFCLIPResNetBottleneck,
    HFCLIPResNetShortcut,
    HFCLIPResNetStage,
    HFCLIPResNetStem,
)

logger = logging.get_logger(__name__)

QUICK_GELU_SLOPE = 1.702
"""quick_gelu(x) = x * sigmoid(1.702 * x)"""

CACHE_BYTES = 16 * 2**20
"""Bytes of a CPU's last-level cache that one layer's result may fill; larger batches pass through in parts."""


class HFCLIPFast(nn.Module):
    """Base class of the replacements. `optimize` sets an exact module's class to one, then calls `prepare` once."""

    @classmethod
    def fits(cls, exact: nn.Module) -> bool:
        """Return False if `exact` has no faster form in spite of its class."""
        return True

    def prepare(self) -> None:
        """Replace the exact module's tensors by the prepared ones that `forward` reads."""


class HFCLIPFastMLP(HFCLIPFast, HFCLIPMLP):
    """Compute quick_gelu in one pass over its input instead of three: quick_gelu(x) = silu(1.702 * x) / 1.702.

    Both factors go into the weights. Long inputs pass through in parts whose hidden states fit the cache.
    """

    @classmethod
    def fits(cls, exact: HFCLIPMLP) -> bool:
        return isinstance(exact.activation_fn, QuickGELUActivation)

    def prepare(self) -> None:
        self.fc1 = scaled(self.fc1, QUICK_GELU_SLOPE, QUICK_GELU_SLOPE)
        self.fc2 = scaled(self.fc2, 1 / QUICK_GELU_SLOPE, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        positions = hidden_states.flatten(0, -2)  # (B, L, C) -> (B * L, C)
        return by_parts(self.whole, positions, self.fc1.out_features).view_as(hidden_states)

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.silu(self.fc1(x), inplace=True))


class HFCLIPFastPatchEmbedding(HFCLIPFast, HFCLIPPatchEmbedding):
    """Compute a convolution whose stride equals its kernel as one matrix product."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        side = self.kernel_size[0]
        batch, channels, height, width = pixel_values.shape
        rows, columns = height // side, width // side
        patches = pixel_values[:, :, : rows * side, : columns * side]
        patches = patches.reshape(batch, channels, rows, side, columns, side)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, rows, columns, 3PP)
        return F.linear(patches, self.weight.flatten(1)).permute(0, 3, 1, 2)


class HFCLIPFastTower(HFCLIPFast, HFCLIPTransformerModel):
    """Tower that computes its last layer only at the pooled position where nothing but `pooler_output` is read."""

    def prepare(self) -> None:
        # transformers looks up what a model can record by its class, and enters a class when it is instantiated
        PreTrainedModel.__init__(type(self).__new__(type(self)), copy.deepcopy(self.config))

    def pooled(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        return self(*args, pooled_only=True, **kwargs)

    def records(self, kwargs: dict[str, Any]) -> bool:
        """Return True if the caller or the configuration asks for every position."""
        flags = ("output_hidden_states", "output_attentions")
        return any(kwargs.get(flag, getattr(self.config, flag)) for flag in flags)


class HFCLIPFastVisionModel(HFCLIPFastTower, HFCLIPVisionModel):
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, pooled_only: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        if not pooled_only or self.records(kwargs):
            return super().forward(pixel_values, interpolate_pos_encoding, **kwargs)
        kwargs.pop("return_dict", None)
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values, interpolate_pos_encoding))
        *layers, last = self.encoder.layers
        for layer in layers:
            hidden_states = layer(hidden_states, **kwargs)
        pooled = at_one_position(last, hidden_states, (slice(None), 0))
        return BaseModelOutputWithPooling(pooler_output=self.post_layernorm(pooled))


class HFCLIPFastTextModel(HFCLIPFastTower, HFCLIPTextModel):
    """Text tower that also computes common beginnings of texts once: on the CPU, where shapes may depend on tokens."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pooled_only: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        if not pooled_only or self.records(kwargs):
            return super().forward(input_ids, attention_mask, position_ids, **kwargs)
        check_texts(input_ids, attention_mask, self.config)
        if not input_ids.numel():
            return super().forward(input_ids, attention_mask, position_ids, **kwargs)
        ids = input_ids.reshape(-1, input_ids.shape[-1])
        eot = self.first_eot(ids)
        if runs_eagerly_on_cpu(ids) and position_ids is None and hides_nothing(attention_mask, eot):
            pooled = self.pooled_by_prefix(ids, eot)
        elif attention_mask is None:
            kwargs.pop("return_dict", None)
            pooled = self.pooled_by_position(ids, position_ids, eot, **kwargs)
        else:
            return super().forward(input_ids, attention_mask, position_ids, **kwargs)
        return BaseModelOutputWithPooling(pooler_output=self.final_layer_norm(pooled))

    def pooled_by_prefix(self, input_ids: torch.Tensor, eot: torch.Tensor) -> torch.Tensor:
        """Compute the EOT states (B, C) of texts (B, L) from each of their prefixes once."""
        texts, text_id = input_ids.where(up_to(eot, input_ids.shape[1]), 0).unique(dim=0, return_inverse=True)
        eot = eot.new_zeros(len(texts)).scatter(0, text_id, eot)
        prefixes = HFCLIPPrefixes.of(texts, eot)
        hidden_states = prefixes.pack(self.embeddings(texts, None, self.dtype))
        *layers, last = self.encoder.layers
        for layer in layers:
            hidden_states = prefixes.through(layer, hidden_states)
        read = (0, prefixes.prefix_id.gather(1, eot[:, None])[:, 0])
        mask = up_to(eot, prefixes.prefix_id.shape[1])[:, None, None]
        return at_one_position(last, hidden_states, read, mask, prefixes.unpack)[text_id]

    def pooled_by_position(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor | None, eot: torch.Tensor, **kwargs
    ) -> torch.Tensor:
        """Compute the EOT states (B, C) of texts (B, L), whatever their tokens."""
        hidden_states = self.embeddings(input_ids, position_ids, self.dtype)
        attention_mask = create_causal_mask(self.config, hidden_states, None, None)
        *layers, last = self.encoder.layers
        for layer in layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        read = (torch.arange(hidden_states.shape[0], device=eot.device), eot)
        return at_one_position(last, hidden_states, read, up_to(eot, input_ids.shape[1])[:, None, None])


@dataclass
class HFCLIPPrefixes:
    """Number the different prefixes of a batch of texts, so that each is computed once.

    After equal prefixes a causal tower has equal states. Three texts that end with E, in sorted order::

        tokens      is_first    prefix_id
        a b c E     1 1 1 1     0 1 2 3      `pack` keeps the states where is_first: one each for the prefixes
        a b E       0 0 1       0 1 4        a, ab, abc, abcE, abE, d, dE. `unpack` looks up the state of each
        d E         1 1         5 6          position by its prefix_id.

    Args:
        is_first: (B, L) marks the positions whose prefix no earlier text has.
        prefix_id: (B, L) numbers the prefix that ends at a position; it means nothing behind a text's end.
    """

    is_first: torch.Tensor
    prefix_id: torch.Tensor

    @classmethod
    def of(cls, input_ids: torch.Tensor, ends: torch.Tensor) -> "HFCLIPPrefixes":
        """Number the prefixes of `input_ids` (B, L), whose rows are sorted and end at the positions `ends` (B,)."""
        is_first = up_to(ends, input_ids.shape[1])
        is_first[1:] &= (input_ids[1:] != input_ids[:-1]).cumsum(1) > 0
        new_id = is_first.flatten().cumsum(0).view_as(is_first) - 1
        rows = torch.arange(len(input_ids), device=input_ids.device)
        first_row = torch.where(is_first, rows[:, None], 0).cummax(0).values  # of the text that has the prefix first
        length = ends.max() + 1
        return cls(is_first[:, :length], new_id.gather(0, first_row)[:, :length])

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Keep one of `x` (B, L, ...), which may have more columns, for each of N prefixes: (1, N, ...)."""
        return x[:, : self.is_first.shape[1]][self.is_first][None]

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """Copy `x` (1, N, ...) to all positions: (B, L, ...)."""
        return x[0, self.prefix_id]

    def through(self, layer: HFCLIPEncoderLayer, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run `layer` on packed states (1, N, C); only its attention sees whole texts."""
        attention = layer.self_attn

        def attend_in_texts(x: torch.Tensor) -> torch.Tensor:
            projected = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
            return attention.out_proj(self.pack(attend(attention, *map(self.unpack, projected), is_causal=True)))

        return layer(hidden_states, attend=attend_in_texts)


class HFCLIPFastResNetStem(HFCLIPFast, HFCLIPResNetStem):
    """Fold the BatchNorms into the convolutions; large batches pass through in parts that fit the cache."""

    def prepare(self) -> None:
        fold(self, conv1="bn1", conv2="bn2", conv3="bn3")

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        positions = (pixel_values.shape[2] // 2) * (pixel_values.shape[3] // 2)
        x = pixel_values.to(self.conv1.weight.dtype)
        return by_parts(self.whole, x, self.conv3.out_channels * positions)

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(conv_relu(self.conv3, conv_relu(self.conv2, conv_relu(self.conv1, x))))


class HFCLIPFastResNetShortcut(HFCLIPFast, HFCLIPResNetShortcut):
    def prepare(self) -> None:
        fold(self, conv="bn")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.pool(x))


class HFCLIPFastResNetBottleneck(HFCLIPFast, HFCLIPResNetBottleneck):
    """Fold the BatchNorms into the convolutions, and sums and ReLUs into their kernels."""

    def prepare(self) -> None:
        fold(self, conv1="bn1", conv2="bn2", conv3="bn3")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = conv_relu(self.conv2, conv_relu(self.conv1, hidden_states))
        return conv_relu(self.conv3, self.pool(x), self.shortcut(hidden_states))


class HFCLIPFastResNetStage(HFCLIPFast, HFCLIPResNetStage):
    """Stage that passes as many images at a time through its blocks as keep their feature maps in the cache."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stride = getattr(self[0].pool, "kernel_size", 1)
        positions = (x.shape[2] // stride) * (x.shape[3] // stride)
        return by_parts(super().forward, x, self[-1].conv3.out_channels * positions)


class HFCLIPFastAttentionPooling(HFCLIPFast, HFCLIPAttentionPooling):
    """Project one row for each head and image instead of 1 + HW.

    The one query goes through the key projection backwards, and the weighted mean of positions through the value
    projection.
    """

    def forward(
        self, feature_map: torch.Tensor, dense: bool = False, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pool (B, C, H, W) to embeddings (B, projection_dim) and weights (B, heads, 1, 1 + HW)."""
        if dense:
            return super().forward(feature_map, dense=True)
        heads = self.config.num_attention_heads
        x = self.positioned(feature_map).transpose(0, 1)  # (1 + HW, B, C) -> (B, 1 + HW, C)
        query = self.q_proj(x[:, 0]).unflatten(-1, (heads, -1))  # (B, C) -> (B, heads, D)
        # the key projection's bias adds the same to all scores of a query, which softmax cannot see
        query = torch.einsum("bhd,hdc->bhc", query * query.shape[-1] ** -0.5, per_head(self.k_proj.weight, heads))
        scores = query @ x.transpose(1, 2)
        weights = scores.softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
        value = torch.einsum("bhc,hdc->bhd", weights @ x, per_head(self.v_proj.weight, heads))
        return self.out_proj((value + per_head(self.v_proj.bias, heads)).flatten(1)), weights[:, :, None]


REPLACEMENTS: dict[type[nn.Module], type[HFCLIPFast]] = {
    HFCLIPMLP: HFCLIPFastMLP,
    HFCLIPPatchEmbedding: HFCLIPFastPatchEmbedding,
    HFCLIPTextModel: HFCLIPFastTextModel,
    HFCLIPVisionModel: HFCLIPFastVisionModel,
    HFCLIPResNetStem: HFCLIPFastResNetStem,
    HFCLIPResNetShortcut: HFCLIPFastResNetShortcut,
    HFCLIPResNetBottleneck: HFCLIPFastResNetBottleneck,
    HFCLIPResNetStage: HFCLIPFastResNetStage,
    HFCLIPAttentionPooling: HFCLIPFastAttentionPooling,
}
"""Exact classes and their replacements. Subclasses stay as they are, because they may compute something else."""


@torch.no_grad()
def optimize(model: HFCLIPPreTrainedModel) -> HFCLIPPreTrainedModel:
    """Turn every module of `model` that has a faster form into it, in place; see `optimize_for_inference`."""
    check_plain(model)
    for module in list(model.modules()):
        replacement = REPLACEMENTS.get(type(module))
        if replacement is not None and replacement.fits(module):
            module.__class__ = replacement
            module.prepare()
    model.eval().requires_grad_(False)
    logger.info(f"{type(model).__name__} is optimized for inference: {dict(model.optimizations)}")
    return model


def check_plain(model: HFCLIPPreTrainedModel) -> None:
    """Raise ValueError if `model` trains, or if its weights are not plain tensors on one device."""
    modules = list(model.modules())
    if any(module.training for module in modules):
        raise ValueError("a model in training mode cannot be optimized: call model.eval() first")
    # accelerate moves weights in hooks, peft keeps them in base layers
    if (
        getattr(model, "is_quantized", False)
        or any(hasattr(module, attribute) for module in modules for attribute in ("_hf_hook", "base_layer"))
        or any(hasattr(parameter, "__tensor_flatten__") for parameter in model.parameters())
    ):
        raise ValueError(
            "only plain weights on one device can be optimized: load the model without quantization_config, and "
            "without a device_map that splits it; merge adapters first"
        )


def at_one_position(
    layer: HFCLIPEncoderLayer,
    hidden_states: torch.Tensor,
    read: tuple,
    mask: torch.Tensor | None = None,
    unpack: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> torch.Tensor:
    """Run `layer` at one position of each row: (B, C).

    Args:
        layer: The layer.
        hidden_states: Its input (B, L, C), or one that `unpack` brings into this shape.
        read: The index of the B positions in `hidden_states`.
        mask: (B, 1, 1, L), true where a row's position attends; to all without it.
        unpack: Function that gives keys and values their shape (B, L, C).
    """
    x, attention = layer.layer_norm1(hidden_states), layer.self_attn
    query, key, value = attention.q_proj(x[read])[:, None], attention.k_proj(x), attention.v_proj(x)
    attended = attend(attention, query, unpack(key), unpack(value), attn_mask=mask)
    return layer.add_attended(hidden_states[read], attention.out_proj(attended[:, 0]))


def attend(attention: HFCLIPAttention, *query_key_value: torch.Tensor, **kwargs) -> torch.Tensor:
    """Apply the attention's heads to `query` (B, L, C), `key` and `value` (B, S, C), which are projected."""
    heads = attention.config.num_attention_heads
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in query_key_value)
    return F.scaled_dot_product_attention(query, key, value, **kwargs).transpose(1, 2).flatten(2)


def hides_nothing(attention_mask: torch.Tensor | None, eot: torch.Tensor) -> bool:
    """Return True if the mask hides nothing up to and including EOT, so it can be ignored."""
    if attention_mask is None:
        return True
    if attention_mask.ndim != 2:
        return False
    return bool((attention_mask.bool() | ~up_to(eot, attention_mask.shape[1])).all())


def up_to(places: torch.Tensor, length: int) -> torch.Tensor:
    """Mark the columns up to and including each of the `places` (B,): (B, length)."""
    return torch.arange(length, device=places.device) <= places[:, None]


def by_parts(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, values: int) -> torch.Tensor:
    """Apply `function` to `x`, on the CPU in parts.

    They are split along dim 0 so that the result of each, `values` numbers per row, fits the cache.
    """
    parts = -(-len(x) * values * x.element_size() // CACHE_BYTES) if runs_eagerly_on_cpu(x) else 1
    if parts <= 1:
        return function(x)
    return torch.cat([function(part) for part in x.split(-(-len(x) // parts))])


def runs_eagerly_on_cpu(x: torch.Tensor) -> bool:
    """Return True if steps may depend on the values and the size of `x`: a graph keeps those it was made with."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def per_head(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    return tensor.unflatten(0, (heads, -1))  # (C, ...) -> (heads, D, ...)


def scaled(linear: nn.Linear, weight: float, bias: float) -> nn.Linear:
    """Copy `linear` with its tensors scaled; those of a loaded model may be mapped from its file."""
    result = nn.Linear(linear.in_features, linear.out_features, device="meta")
    result.weight = nn.Parameter(linear.weight * weight)
    result.bias = nn.Parameter(linear.bias * bias)
    return result


def fold(module: nn.Module, **batch_norms: str) -> None:
    """Replace each convolution of `module` by one that includes the BatchNorm after it, and remove that."""
    for conv, bn in batch_norms.items():
        setattr(module, conv, folded(getattr(module, conv), getattr(module, bn)))
        delattr(module, bn)


def folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Combine `conv` and `bn` in float32, rounded once to the dtype of `conv`, channels last."""
    return fuse_conv_bn_eval(conv, bn.float()).to(memory_format=torch.channels_last)


def conv_relu(conv: nn.Conv2d, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `relu(conv(x) + residual)`."""
    if has_onednn_kernel(x):
        fused = torch.ops.mkldnn._convolution_pointwise
        settings = (conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
        if residual is None:
            return fused(x, *settings, "relu", [], "")
        return fused(x, residual, *settings, "add", 1.0, "relu", [], "")
    x = conv(x)
    return F.relu(x if residual is None else x + residual, inplace=True)


def has_onednn_kernel(x: torch.Tensor) -> bool:
    """Return True if oneDNN can add and apply ReLU while it convolves.

    Its kernel has no gradient, and a compiler would rather choose one itself.
    """
    return (
        runs_eagerly_on_cpu(x)
        and x.dtype == torch.float32
        and not (torch.is_grad_enabled() and x.requires_grad)
        and torch.backends.mkldnn.is_available()
    )


__all__ = ["HFCLIPFast", "HFCLIPPrefixes", "optimize"]
