"""What both vision families and the text tower share."""

from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from .configuration_hf_clip import HFCLIPConfig
from .optimization_hf_clip import HFCLIPFused

logger = logging.get_logger(__name__)

ALIGNMENT = 64  # bytes, as PyTorch allocates


def unexpected_keys(*parts: str) -> list[str]:
    """Patterns of keys that may stand in a checkpoint without a warning: `parts` of a joint model."""
    # old stock checkpoints carry position ids as buffers
    return [r"position_ids$", *(rf"^{part}(\.|$)" for part in parts)]


class HFCLIPPreTrainedModel(PreTrainedModel):
    config_class = HFCLIPConfig
    base_model_prefix = "hf_clip"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = unexpected_keys()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        _align(loaded[0] if isinstance(loaded, tuple) else loaded)  # a pair with output_loading_info
        return loaded

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix products: that of the first convolution or linear layer, as in the original's
        `CLIP.dtype`. Norms and embeddings may be kept in float32 beside it."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.is_floating_point():
                return module.weight.dtype
        return super().dtype

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # transformers passes over the containers of code that is not its own, lest it overwrites loaded tensors: here
        # all goes through its guarded functions, which spare them
        super()._initialize_weights(module, False)

    def _init_weights(self, module: nn.Module) -> None:
        """As the original's `initialize_parameters`: PyTorch's defaults, then what a module says of itself."""
        if hasattr(module, "initialize_parameters"):
            module.initialize_parameters()
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @property
    def optimizations(self) -> Counter[str]:
        """The classes that `optimize_for_inference` put in, and how many of each: empty in an exact model."""
        return Counter(type(module).__name__ for module in self.modules() if isinstance(module, HFCLIPFused))

    @torch.no_grad()
    def optimize_for_inference(self) -> "HFCLIPPreTrainedModel":
        """Give up equal bits for speed, in place: the model computes the same up to rounding, and can no longer be
        trained or saved. Called again it changes nothing; `optimizations` lists what it did.

        ResNets: BatchNorms folded into channels_last convolutions, sums and ReLUs into their kernels (fp32 on the CPU),
        and an attention pooling that projects one row instead of all positions. ViTs and text towers: patches embedded
        by one product of matrices, quick_gelu in one pass, and the last layer only at the position that is read, so the
        outputs with embeddings have no `last_hidden_state` unless `output_hidden_states=True`. On the CPU, texts of a
        batch that begin alike are computed once up to where they part, without padding, and large batches go through
        in parts that fit the cache. Embeddings of unit norm move by under 1e-6 in fp32 (random RN50, RN50x4 and
        ViT-B/32; by under 2e-7 in any one number), in half precision by as much as its own roundings.

        Raises ValueError in training mode, and where weights are quantised, split over devices, or behind adapters.
        """
        modules = list(self.modules())
        if any(module.training for module in modules):
            raise ValueError("A model in training mode cannot be optimised: call model.eval() first.")
        # accelerate moves weights in hooks, peft keeps them in base layers
        if getattr(self, "is_quantized", False) or any(
            hasattr(module, attribute) for module in modules for attribute in ("_hf_hook", "base_layer")
        ):
            raise ValueError(
                "Only plain weights on one device can be optimised: load the model without quantization_config, and "
                "without a device_map that splits it; merge adapters first."
            )
        _fuse(self)
        self.eval().requires_grad_(False)
        logger.info(f"{type(self).__name__} is optimised for inference: {dict(self.optimizations)}")
        return self

    def save_pretrained(self, *args, **kwargs) -> None:
        if self.optimizations:
            raise ValueError(
                "An optimised model cannot be saved, its tensors are not the checkpoint's: call save_pretrained before "
                "optimize_for_inference."
            )
        super().save_pretrained(*args, **kwargs)


def _fuse(module: nn.Module) -> None:
    """Replace everything below `module` that has a fused form."""
    for name, child in module.named_children():
        if not isinstance(child, HFCLIPFused):
            _fuse(child)
        if hasattr(child, "fused"):
            setattr(module, name, child.fused())


def _align(model: nn.Module) -> None:
    """Copy weights that lie in memory as they lay in the file: BLAS gives other bits for unaligned ones."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


class HFCLIPProjection(nn.Linear):
    """The projection into the embedding space, `x @ proj` in the original, without bias."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def initialize_parameters(self) -> None:
        init.normal_(self.weight, std=self.in_features**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # the original's matrix lies (in, out) in memory: BLAS gives other bits for the transposed layout
        return x @ self.weight.t().contiguous()


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that gives its weights; `attention_mask` is added to the scores."""
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def multi_head_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    attend: Callable | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend with the configured backend, unless `attend` is given.

    `query` (B, L, C), `key` and `value` (B, S, C) give (B, L, C) and, from the eager backend, weights (B, H, L, S).
    """
    config = module.config
    head_dim = config.hidden_size // config.num_attention_heads
    attend = attend or ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention)
    output, weights = attend(
        module,
        *(x.unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (query, key, value)),  # (B, L, C) -> (B, H, L, D)
        attention_mask,
        scaling=head_dim**-0.5,
        dropout=dropout if module.training else 0.0,
        **kwargs,
    )
    return output.flatten(2), weights  # (B, L, H, D) -> (B, L, C)


def interpolate_positions(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bicubic resampling of a square grid of position embeddings behind one class position.

    (1 + N * N, C) gives (1 + H * W, C) for `grid` (H, W).
    """
    side = round((positions.shape[0] - 1) ** 0.5)
    patches = positions[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]  # (N * N, C) -> (1, C, N, N)
    patches = F.interpolate(patches.float(), size=grid, mode="bicubic", align_corners=False).to(positions.dtype)
    return torch.cat([positions[:1], patches[0].flatten(1).T])


def normalize(embeds: torch.Tensor) -> torch.Tensor:
    return embeds / embeds.norm(dim=-1, keepdim=True)


def contrastive_logits(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """Scores (images, texts) of normalised embeddings; `logit_scale` is the logarithm of the scale."""
    # the original's order of operations: another one gives other bits
    return logit_scale.exp() * image_embeds @ text_embeds.t()


def check_image_size(height: int, width: int, config) -> None:
    if (height, width) != (config.image_size, config.image_size):
        raise ValueError(
            f"The images are {height}x{width}, the model reads {config.image_size}x{config.image_size}: resize them "
            "with the processor, or pass interpolate_pos_encoding=True."
        )
