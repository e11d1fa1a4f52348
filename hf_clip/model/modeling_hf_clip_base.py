"""Base classes and functions of the text tower and of both vision families."""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_hf_clip import HFCLIPConfig, check_is_folder

ALIGNMENT = 64  # bytes, as PyTorch allocates


def unexpected_keys(*parts: str) -> list[str]:
    """Return patterns of checkpoint keys that loading ignores without a warning: `parts` of a joint model."""
    # old stock checkpoints carry position ids as buffers
    return [r"position_ids$", *(rf"^{part}(\.|$)" for part in parts)]


class HFCLIPPreTrainedModel(PreTrainedModel):
    """Base class of all models: loading, dtypes, initialization, and optimization for inference."""

    config_class = HFCLIPConfig
    base_model_prefix = "hf_clip"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # losses are means over the batch, so Trainer divides them by the steps of an accumulation
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_unexpected = unexpected_keys()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        check_is_folder(args[0] if args else None)
        loaded = super().from_pretrained(*args, **kwargs)
        _align(loaded[0] if isinstance(loaded, tuple) else loaded)  # a pair with output_loading_info
        return loaded

    @classmethod
    def _from_config(cls, config, **kwargs):
        """Build a model without a checkpoint, its towers in the same dtype."""
        if (dtype := kwargs.get("dtype")) is not None:
            # the towers are made from their own configurations
            for part in (config, *(getattr(config, name) for name in config.sub_configs)):
                part.dtype = dtype
        return super()._from_config(config, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the matrix products, read from the first convolution or linear layer, as in the original.

        Norms and embeddings may be kept in float32 beside it.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and has_plain_weight(module):
                return module.weight.dtype
        return super().dtype

    def no_weight_decay(self) -> set[str]:
        """Return the parameters to train without weight decay: gains, biases, scales, class and position embeddings."""
        return {name for name, p in self.named_parameters() if p.ndim <= 1 or "position_embedding" in name}

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # transformers skips containers of custom code, whose initialization might overwrite loaded tensors. Ours goes
        # through its guarded functions, which spare loaded tensors.
        super()._initialize_weights(module, False)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the original does: by a module's own `initialize_parameters`, else by PyTorch's defaults."""
        layers = [child for child in module.modules() if isinstance(child, nn.Conv2d | nn.Linear | nn.Embedding)]
        if not all(map(has_plain_weight, layers)):
            return  # a quantizer has put its own tensors there
        if hasattr(module, "initialize_parameters"):
            module.initialize_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @property
    def optimizations(self) -> Counter[str]:
        """Count the modules that `optimize_for_inference` replaced, by their new class; empty in an exact model."""
        from .inference_hf_clip import HFCLIPFast

        return Counter(type(module).__name__ for module in self.modules() if isinstance(module, HFCLIPFast))

    def optimize_for_inference(self) -> "HFCLIPPreTrainedModel":
        """Make the model faster in place; its results stay the same up to rounding.

        Afterwards it can no longer be trained or saved. A second call changes nothing.

        - ResNets fold BatchNorms into channels_last convolutions, and sums and ReLUs into their kernels (float32 on the
          CPU). Their attention pooling projects one row instead of all positions.
        - ViTs and text towers compute quick_gelu in one pass, patches in one matrix product, and the last layer only at
          the pooled position. Outputs with embeddings therefore have no `last_hidden_state`, unless
          `output_hidden_states=True`; a tower that is called directly has one.
        - On the CPU, text towers compute the common beginnings of a batch's texts once and skip padding, and large
          batches pass through a layer in parts that fit the cache.

        Embeddings of unit norm move by less than 1e-6 in float32 (random RN50, RN50x4 and ViT-B/32; no number by more
        than 2e-7), in half precision by about its own rounding.

        Returns:
            The model itself. `optimizations` counts the replaced modules.

        Raises:
            ValueError: If the model is in training mode, or its weights are quantized, split over devices, or behind
                adapters.

        Example:
            ```python
            model = HFCLIPModel.from_pretrained("path/to/clip-vit-base-patch32").eval().optimize_for_inference()
            ```
        """
        from .inference_hf_clip import optimize

        return optimize(self)

    def save_pretrained(self, *args, **kwargs) -> None:
        if self.optimizations:
            raise ValueError(
                "an optimized model cannot be saved, its tensors are not the checkpoint's: call save_pretrained before "
                "optimize_for_inference"
            )
        super().save_pretrained(*args, **kwargs)


def has_plain_weight(module: nn.Module) -> bool:
    """Return True if the layer's `weight` is a floating-point tensor, not one that a quantizer has packed."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.is_floating_point()


class HFCLIPVisionTower(HFCLIPPreTrainedModel):
    """Base class of the vision towers of both families."""

    def feature_map(self, last_hidden_state: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Arrange the positions of images of `height` x `width` pixels as a map (B, C, H, W)."""
        raise NotImplementedError

    def dense_embeds(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Pool each position as if it were the only one: (B, C, H, W), before any projection."""
        raise NotImplementedError

    def dense_features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Compute one vector for each patch (ViT) or position of the last feature map (ResNet).

        They come from the last layer, before the final normalization and the projection.

        Args:
            pixel_values: (B, 3, height, width), normalized by the processor.
            interpolate_pos_encoding: Accept other sizes than the configured `image_size`.

        Returns:
            (B, hidden_size, H, W).

        Example:
            ```python
            features = model.vision_model.dense_features(processor(images=image, return_tensors="pt").pixel_values)
            ```
        """
        hidden = self(pixel_values, interpolate_pos_encoding, return_dict=True).last_hidden_state
        return self.feature_map(hidden, *pixel_values.shape[-2:])


def pooled_output(tower: nn.Module, *args, **kwargs) -> BaseModelOutputWithPooling:
    """Run `tower` for its `pooler_output`; an optimized tower may then leave out `last_hidden_state`."""
    # looked up on the class: wrappers (torch.compile, FSDP) forward a tower's attributes, but must be called themselves
    call = tower.pooled if hasattr(type(tower), "pooled") else tower
    return call(*args, return_dict=True, **kwargs)


def _align(model: nn.Module) -> None:
    """Copy weights that are mapped from their file without alignment, where BLAS gives other bits."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


class HFCLIPProjection(nn.Linear):
    """Projection into the embedding space, without bias: `x @ proj` in the original."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def initialize_parameters(self) -> None:
        init.normal_(self.weight, std=self.in_features**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self.weight, "__tensor_flatten__"):  # a quantizer's or a sharded tensor, which has its own kernels
            return F.linear(x, self.weight)
        # the original's matrix lies (in, out) in memory: BLAS gives other bits for the transposed layout
        return x @ self.weight.t().contiguous()


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in plain operations, which give the weights too; `attention_mask` is added to the scores."""
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def multi_head_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    *,
    attend: Callable,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend with several heads to projected tensors, by the backend `attend` that the module gets from transformers.

    `query` (B, L, C), `key` and `value` (B, S, C) give (B, L, C) and, from the eager backend, weights (B, heads, L, S).
    """
    head_dim = module.config.hidden_size // module.config.num_attention_heads
    # (B, L, C) -> (B, heads, L, C / heads)
    if not is_recorded(query) and not query.numel():
        attend = eager_attention_forward  # the other kernels refuse an empty batch, which the original's ResNet takes
    # counted from the tensor, which under tensor parallelism holds a part of the heads; not by unflatten, for which the
    # older ONNX exporter writes the traced batch into the graph
    heads = (x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim).transpose(1, 2) for x in (query, key, value))
    output, weights = attend(
        module,
        *heads,
        attention_mask,
        scaling=head_dim**-0.5,
        dropout=dropout if module.training else 0.0,
        **kwargs,
    )
    return output.flatten(2), weights  # (B, L, heads, C / heads) -> (B, L, C)


def interpolate_positions(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Resample a square grid of position embeddings bicubically; the class position before it stays.

    (1 + side * side, C) becomes (1 + H * W, C) for `grid` (H, W).
    """
    side = round((positions.shape[0] - 1) ** 0.5)
    patches = positions[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]  # (side * side, C) -> (1, C, side, side)
    patches = F.interpolate(patches.float(), size=grid, mode="bicubic", align_corners=False).to(positions.dtype)
    return torch.cat([positions[:1], patches[0].flatten(1).T])  # (1, C, H, W) -> (1 + H * W, C)


def normalize(embeds: torch.Tensor) -> torch.Tensor:
    """Scale embeddings (..., D) to unit length, without an epsilon, as the original does."""
    return embeds / embeds.norm(dim=-1, keepdim=True)


def contrastive_logits(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """Return the scores (images, texts) of normalized embeddings; `logit_scale` is the logarithm of the scale."""
    # the original's order of operations: another one gives other bits
    return logit_scale.exp() * image_embeds @ text_embeds.t()


def contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """Return the symmetric cross-entropy of scores (N, N) where the i-th image belongs to the i-th text (figure 3)."""
    pairs = torch.arange(logits_per_image.shape[0], device=logits_per_image.device)
    return (F.cross_entropy(logits_per_image, pairs) + F.cross_entropy(logits_per_image.t(), pairs)) / 2


def check_images(pixel_values: torch.Tensor, config, stride: int, interpolate: bool) -> None:
    """Raise TypeError or ValueError unless images are a batch (B, C, H, W) the model can read; `stride` in pixels."""
    if isinstance(pixel_values, Mapping):
        raise TypeError(
            f"pixel_values is a {type(pixel_values).__name__}, not a tensor: pass batch['pixel_values'] or **batch"
        )
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(
            f"pixel_values is a {type(pixel_values).__name__}, not a tensor: prepare images with the processor and "
            "return_tensors='pt'"
        )
    shape, channels = tuple(pixel_values.shape), config.num_channels
    if len(shape) != 4:
        hint = ": add the batch axis with pixel_values[None]" if len(shape) == 3 else ""
        raise ValueError(f"pixel_values has {len(shape)} axes, not the 4 of (batch, {channels}, height, width){hint}")
    if shape[1] != channels:
        hint = (
            "move the channels with pixel_values.permute(0, 3, 1, 2)"
            if shape[3] == channels
            else "prepare images with the processor"
        )
        raise ValueError(f"pixel_values has {shape[1]} channels on its second axis, the model reads {channels}: {hint}")
    if not interpolate:
        check_image_size(pixel_values.shape[2], pixel_values.shape[3], config)
    elif min(shape[2:]) < stride:
        raise ValueError(
            f"images are {shape[2]}x{shape[3]}, smaller than the model's stride of {stride} pixels: enlarge them"
        )


def check_texts(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, config) -> None:
    """Raise TypeError or ValueError unless texts are ids of the vocabulary, with a mask of that length or none."""
    if isinstance(input_ids, Mapping):
        raise TypeError(f"input_ids is a {type(input_ids).__name__}, not a tensor: pass batch['input_ids'] or **batch")
    if not isinstance(input_ids, torch.Tensor):
        raise TypeError(
            f"input_ids is a {type(input_ids).__name__}, not a tensor: prepare texts with the tokenizer and "
            "return_tensors='pt'"
        )
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise TypeError(f"input_ids are {input_ids.dtype}, not integers: pass what the tokenizer returns")
    if input_ids.ndim == 0 or not input_ids.shape[-1]:
        raise ValueError(f"input_ids has the shape {tuple(input_ids.shape)}, not (batch, length): tokenize some text")
    if attention_mask is not None and attention_mask.shape[-1] != input_ids.shape[-1]:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[-1]} columns, input_ids has {input_ids.shape[-1]}: pass both "
            "as the tokenizer returns them"
        )
    # reading values would wait for a device, and cannot be recorded in a graph
    if input_ids.device.type == "cpu" and input_ids.numel() and not is_recorded(input_ids):
        least, most = (int(x) for x in input_ids.aminmax())
        if least < 0 or most >= config.vocab_size:
            wrong = least if least < 0 else most
            raise ValueError(
                f"input_ids has the id {wrong}, outside the vocabulary of {config.vocab_size} tokens: use the model's "
                "own tokenizer"
            )


def is_recorded(tensor: torch.Tensor) -> bool:
    """Return True if a compiler, an exporter or a tracer records the operations on `tensor`, or it has no values."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.onnx.is_in_onnx_export()
        or type(tensor) not in (torch.Tensor, nn.Parameter)  # fake and functional tensors
        or torch._C._functorch.is_batchedtensor(tensor)
    )


def check_image_size(height: int, width: int, config) -> None:
    """Raise ValueError unless images have the configured size."""
    if (height, width) != (config.image_size, config.image_size):
        raise ValueError(
            f"images are {height}x{width}, the model reads {config.image_size}x{config.image_size}: resize them with "
            "the processor, or pass interpolate_pos_encoding=True"
        )
