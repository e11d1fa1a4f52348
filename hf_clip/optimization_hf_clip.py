"""Faster forms of modules, for inference: the same functions, equal up to rounding, of other tensors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# quick_gelu(x) = x * sigmoid(1.702 * x)
QUICK_GELU_SLOPE = 1.702
# what stays in a CPU's last cache between two layers
CACHE_BYTES = 1 << 24


class HFCLIPFused(nn.Module):
    """What a module's `fused` method gives to stand in its place."""


class HFCLIPFusedMLP(HFCLIPFused):
    """`quick_gelu(x) = silu(1.702 * x) / 1.702`, both factors in the weights: one pass over x instead of three.

    (B, L, C) goes through in parts of as many positions as leave their hidden state in the cache.
    """

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.fc1 = scaled(mlp.fc1, QUICK_GELU_SLOPE, QUICK_GELU_SLOPE)
        self.fc2 = scaled(mlp.fc2, 1 / QUICK_GELU_SLOPE, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        positions = hidden_states.flatten(0, -2)  # (B, L, C) -> (B * L, C)
        return by_parts(self.whole, positions, self.fc1.out_features).view_as(hidden_states)

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.silu(self.fc1(x), inplace=True))


class HFCLIPFusedResNetStem(HFCLIPFused):
    def __init__(self, stem: nn.Module):
        super().__init__()
        self.conv1 = folded(stem.conv1, stem.bn1)
        self.conv2 = folded(stem.conv2, stem.bn2)
        self.conv3 = folded(stem.conv3, stem.bn3)
        self.pool = stem.pool

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        positions = (pixel_values.shape[2] // 2) * (pixel_values.shape[3] // 2)
        x = pixel_values.to(self.conv1.weight.dtype)
        return by_parts(self.whole, x, self.conv3.out_channels * positions)

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(conv_relu(self.conv3, conv_relu(self.conv2, conv_relu(self.conv1, x))))


class HFCLIPFusedResNetBottleneck(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        self.conv1 = folded(block.conv1, block.bn1)
        self.conv2 = folded(block.conv2, block.bn2)
        self.pool = block.pool
        self.conv3 = folded(block.conv3, block.bn3)
        shortcut = block.shortcut
        if not isinstance(shortcut, nn.Identity):
            shortcut = nn.Sequential(shortcut.pool, folded(shortcut.conv, shortcut.bn))
        self.shortcut = shortcut

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = conv_relu(self.conv2, conv_relu(self.conv1, hidden_states))
        return conv_relu(self.conv3, self.pool(x), self.shortcut(hidden_states))


class HFCLIPFusedResNetStage(HFCLIPFused):
    """Goes through all its blocks with as many images at a time as leave their feature maps in the cache."""

    def __init__(self, blocks: nn.Sequential, stride: int):
        super().__init__()
        self.blocks = nn.Sequential(*(HFCLIPFusedResNetBottleneck(block) for block in blocks))
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = (x.shape[2] // self.stride) * (x.shape[3] // self.stride)
        return by_parts(self.blocks, x, self.blocks[-1].conv3.out_channels * positions)


class HFCLIPFusedAttentionPooling(HFCLIPFused):
    """The one query goes through the key projection backwards, and the weighted mean of positions through the value
    projection: two products with one row for each head and image, where there were 1 + HW rows.
    """

    def __init__(self, exact: nn.Module):
        super().__init__()
        self.exact = exact

    def forward(self, feature_map: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, H, W) gives embeddings (B, projection_dim) and weights (B, heads, 1, 1 + HW)."""
        exact, heads = self.exact, self.exact.config.num_attention_heads
        x = exact.positioned(feature_map).transpose(0, 1)  # (1 + HW, B, C) -> (B, 1 + HW, C)
        query = exact.q_proj(x[:, 0]).unflatten(-1, (heads, -1))  # (B, C) -> (B, heads, D)
        # the key projection's bias adds the same to all scores of a query, which softmax cannot see
        query = torch.einsum("bhd,hdc->bhc", query * query.shape[-1] ** -0.5, per_head(exact.k_proj.weight, heads))
        weights = (query @ x.transpose(1, 2)).softmax(-1, dtype=torch.float32).to(x.dtype)
        value = torch.einsum("bhc,hdc->bhd", weights @ x, per_head(exact.v_proj.weight, heads))
        return exact.out_proj((value + per_head(exact.v_proj.bias, heads)).flatten(1)), weights[:, :, None]


class HFCLIPFusedPatchEmbedding(HFCLIPFused):
    """A convolution whose stride is its kernel is one product of matrices."""

    def __init__(self, exact: nn.Conv2d):
        super().__init__()
        self.exact = exact

    @property
    def weight(self) -> torch.Tensor:
        return self.exact.weight

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) gives (B, C, H / P, W / P)."""
        side = self.exact.kernel_size[0]
        rows, columns = pixel_values.shape[2] // side, pixel_values.shape[3] // side
        patches = pixel_values[:, :, : rows * side, : columns * side].unflatten(2, (rows, side))
        patches = patches.unflatten(4, (columns, side)).permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, rows, columns, 3PP)
        return F.linear(patches, self.exact.weight.flatten(1)).permute(0, 3, 1, 2)


@dataclass
class HFCLIPPrefixes:
    """Texts (B, L) as the N different prefixes that they begin with: after equal ones a causal tower has equal states.

    `first` (B, L) marks where each stands first, `number` (B, L) says which of the N, in that order, a position has.
    """

    first: torch.Tensor
    number: torch.Tensor

    @classmethod
    def of(cls, input_ids: torch.Tensor, ends: torch.Tensor) -> "HFCLIPPrefixes":
        """`input_ids` (B, L) in lexicographic order, which count up to the places `ends` (B,)."""
        first = up_to(ends, input_ids.shape[1])
        first[1:] &= (input_ids[1:] != input_ids[:-1]).cumsum(1) > 0
        number = first.flatten().cumsum(0).view_as(first) - 1
        rows = torch.arange(len(input_ids), device=input_ids.device)
        owner = torch.where(first, rows[:, None], 0).cummax(0).values
        width = ends.max() + 1
        return cls(first[:, :width], number.gather(0, owner)[:, :width])

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, ...), or more columns, gives (1, N, ...)."""
        return x[:, : self.first.shape[1]][self.first][None]

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """(1, N, ...) gives (B, L, ...)."""
        return x[0, self.number]

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None,
        **kwargs,
    ) -> tuple[torch.Tensor, None]:
        """Causal attention, as a backend of transformers: (1, H, N, D) give (1, N, H, D)."""
        query, key, value = (self.spread(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, H, L, D)
        return self.gather(output.transpose(1, 2)), None


def up_to(places: torch.Tensor, length: int) -> torch.Tensor:
    """(B,) as masks (B, L), which are true up to that place."""
    return torch.arange(length, device=places.device) <= places[:, None]


def by_parts(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, values: int) -> torch.Tensor:
    """`function(x)`, on the CPU in equal parts along the first axis; a row makes a result of `values` numbers."""
    parts = -(-len(x) * values * x.element_size() // CACHE_BYTES) if runs_eagerly_on_cpu(x) else 1
    if parts <= 1:
        return function(x)
    return torch.cat([function(part) for part in x.split(-(-len(x) // parts))])


def runs_eagerly_on_cpu(x: torch.Tensor) -> bool:
    """Whether steps may depend on the values and the size of what comes: a graph keeps those it was made with."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def per_head(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    return tensor.unflatten(0, (heads, -1))  # (C, ...) -> (heads, D, ...)


def scaled(linear: nn.Linear, weight: float, bias: float) -> nn.Linear:
    """A new layer, its tensors scaled: those of a loaded model may be mapped from its file."""
    result = nn.Linear(linear.in_features, linear.out_features, device="meta")
    result.weight = nn.Parameter(linear.weight * weight)
    result.bias = nn.Parameter(linear.bias * bias)
    return result


def folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """`bn` after `conv` as one convolution, channels last; in float32, then rounded once to the dtype of `conv`."""
    return fuse_conv_bn_eval(conv, bn.float()).to(memory_format=torch.channels_last)


def conv_relu(conv: nn.Conv2d, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    """`relu(conv(x) + residual)`."""
    if has_onednn_kernel(x):
        fused = torch.ops.mkldnn._convolution_pointwise
        settings = (conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
        if residual is None:
            return fused(x, *settings, "relu", [], "")
        return fused(x, residual, *settings, "add", 1.0, "relu", [], "")
    x = conv(x)
    return F.relu(x if residual is None else x + residual, inplace=True)


def has_onednn_kernel(x: torch.Tensor) -> bool:
    """Whether oneDNN can add and apply ReLU while it convolves: a kernel without gradient, and one that a compiler
    would rather choose itself.
    """
    return (
        runs_eagerly_on_cpu(x)
        and x.dtype == torch.float32
        and not (torch.is_grad_enabled() and x.requires_grad)
        and torch.backends.mkldnn.is_available()
    )


__all__ = [
    "HFCLIPFused",
    "HFCLIPFusedAttentionPooling",
    "HFCLIPFusedMLP",
    "HFCLIPFusedPatchEmbedding",
    "HFCLIPFusedResNetStage",
    "HFCLIPFusedResNetStem",
    "HFCLIPPrefixes",
]
