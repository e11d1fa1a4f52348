"""`CLIP`: an HFCLIPModel behind the methods, attributes and parameter names of the original's `clip/model.py`."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..model.modeling_hf_clip import HFCLIPAttention, HFCLIPEncoder, HFCLIPEncoderLayer, HFCLIPModel
from ..model.modeling_hf_clip_base import (
    contrastive_logits,
    eager_attention_forward,
    multi_head_attention,
    normalize,
)
from ..model.modeling_hf_clip_resnet import HFCLIPAttentionPooling
from .infer_config import infer_config
from .key_mapping import BOOKKEEPING, to_hf, to_original
from .variants import OPENAI, Variant

# Texts are computed in steps of this many columns: the attention kernels of the CPU go through whole vectors of scores,
# and give other bits for a remainder.
COLUMNS = 16

ELSEWHERE = {
    **{f"relu{i}": "torch.nn.functional.relu, as hf_model.vision_model.stem does" for i in (1, 2, 3)},
    "initialize_parameters": "HFCLIPModel(config), which initializes as the original",
}


class ImageSizeError(ValueError, RuntimeError):
    """Raised for images of another size than the model's; a RuntimeError as in the original."""


def part(path: str) -> property:
    """Show the live module, parameter or setting at `path`, under a name of the original."""

    def get(module: nn.Module):
        value = module
        for name in path.split("."):
            value = getattr(value, name)
        return value

    return property(get)


class OriginalNames(nn.Module):
    """Share the parts of an HFCLIPModel: they can be trained, changed and hooked, but not replaced."""

    def __getattr__(self, name: str):
        if name in ELSEWHERE:
            raise AttributeError(f"{type(self).__name__} has no {name!r} here: use {ELSEWHERE[name]}")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value) -> None:
        if name in ELSEWHERE or name in self._modules or isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{name!r} cannot be replaced here: change it in place, or change CLIP.hf_model")
        super().__setattr__(name, value)


def causal_mask(length: int) -> Tensor:
    """Return what the original adds to scores (length, length): -inf above the diagonal, 0 elsewhere."""
    return torch.full((length, length), float("-inf")).triu_(1)


def batch_first(x: Tensor) -> Tensor:
    """Lay (L, B, C) out as a layer computes, (B, L, C): other orders and strides give products other bits."""
    return x.transpose(0, 1).contiguous()


class MultiheadAttention(OriginalNames):
    """Attend as a layer does, called like `torch.nn.MultiheadAttention` with (length, batch, width).

    `in_proj_weight` and `in_proj_bias` are copies of the three projections, through which gradients pass.
    """

    out_proj = part("attention.out_proj")
    embed_dim = part("attention.config.hidden_size")
    num_heads = part("attention.config.num_attention_heads")

    def __init__(self, attention: HFCLIPAttention):
        super().__init__()
        self.add_module("attention", attention)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def in_proj_weight(self) -> Tensor:
        return torch.cat([projection.weight for projection in self._projections])

    @property
    def in_proj_bias(self) -> Tensor:
        return torch.cat([projection.bias for projection in self._projections])

    @property
    def _projections(self) -> tuple[nn.Linear, ...]:
        return self.attention.q_proj, self.attention.k_proj, self.attention.v_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output (L, B, C) and, if asked for, weights (B, L, S), or (B, heads, L, S) of each head.

        `attn_mask` (L, S) is added to the scores, or says as booleans where not to look. `is_causal` says that it is
        causal, which the kernels then do themselves.
        """
        attention, implementation = self.attention, self.attention.config._attn_implementation
        pairs = zip(self._projections, (query, key, value), strict=True)
        query, key, value = (project(batch_first(each)) for project, each in pairs)
        if attn_mask is not None and is_causal and not need_weights:
            attn_mask = create_causal_mask(attention.config, query, None, None)
        elif attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(attn_mask, float("-inf"))
            attn_mask = attn_mask.to(query)[None, None]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = multi_head_attention(
            attention,
            query,
            key,
            value,
            attn_mask,
            attention.config.attention_dropout,
            attend=eager_attention_forward if need_weights else attend,
        )
        if not need_weights:
            weights = None
        elif average_attn_weights:
            weights = weights.mean(1)
        return attention.out_proj(output).transpose(0, 1), weights


class ResidualAttentionBlock(OriginalNames):
    """Show a layer under the original's names; it takes and gives (length, batch, width)."""

    ln_1 = part("layer.layer_norm1")
    ln_2 = part("layer.layer_norm2")

    def __init__(self, layer: HFCLIPEncoderLayer):
        super().__init__()
        self.add_module("layer", layer)
        self.add_module("attn", MultiheadAttention(layer.self_attn))
        names = OrderedDict(c_fc=layer.mlp.fc1, gelu=layer.mlp.activation_fn, c_proj=layer.mlp.fc2)
        self.add_module("mlp", nn.Sequential(names))

    @property
    def attn_mask(self) -> Tensor | None:
        """Return the causal mask of a text's block, for all positions; None for an image's."""
        attention = self.layer.self_attn
        return causal_mask(attention.config.max_position_embeddings) if attention.is_causal else None

    def attention(self, x: Tensor) -> Tensor:
        mask = causal_mask(len(x)).to(x) if self.layer.self_attn.is_causal else None
        return self.attn(x, x, x, need_weights=False, attn_mask=mask, is_causal=mask is not None)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(batch_first(self.ln_2(x))).transpose(0, 1)


class Blocks(nn.Sequential):
    """Hold the blocks of a Transformer; they can be trained and hooked, but not replaced."""

    def __setitem__(self, index: int, module: nn.Module) -> None:
        raise AttributeError("a block cannot be replaced here: hook it, wrap its forward, or change it in place")


class Transformer(OriginalNames):
    """Encode (length, batch, width); a text tower's is causal.

    Once `resblocks` were asked for, the model computes through them, so that their hooks run.
    """

    def __init__(self, encoder: HFCLIPEncoder):
        super().__init__()
        self.add_module("encoder", encoder)
        self.blocks: Blocks | None = None

    @property
    def width(self) -> int:
        return self.encoder.layers[0].self_attn.config.hidden_size

    @property
    def layers(self) -> int:
        return len(self.encoder.layers)

    @property
    def resblocks(self) -> Blocks:
        if self.blocks is None:
            if type(self.encoder) is not HFCLIPEncoder:
                raise ValueError("the blocks of an optimized model are fused: take resblocks of one that is not")
            blocks = Blocks(*(ResidualAttentionBlock(layer) for layer in self.encoder.layers))
            self.__dict__["blocks"] = blocks  # no submodule: the parameters keep their names
            return blocks
        return self.blocks

    def forward(self, x: Tensor) -> Tensor:
        if self.blocks is not None:
            return self.blocks(x)
        x = x.transpose(0, 1)  # (L, B, C) -> (B, L, C)
        attention, mask = self.encoder.layers[0].self_attn, None
        if attention.is_causal:
            mask = create_causal_mask(attention.config, x, None, None)
        return self.encoder(x, mask).transpose(0, 1)  # (B, L, C) -> (L, B, C)


class AttentionPool2d(OriginalNames):
    """Show the ResNet's attention pooling under the original's names: (B, C, H, W) to embeddings (B, output_dim)."""

    positional_embedding = part("pool.position_embedding.weight")
    q_proj, k_proj, v_proj, c_proj = (part(f"pool.{name}") for name in ("q_proj", "k_proj", "v_proj", "out_proj"))
    num_heads = part("pool.config.num_attention_heads")

    def __init__(self, pool: HFCLIPAttentionPooling):
        super().__init__()
        self.add_module("pool", pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)[0]


class Visual(OriginalNames):
    """Show a vision tower with its projection: pixels (B, 3, H, W) to embeddings (B, output_dim)."""

    input_resolution = part("vision_model.config.image_size")
    output_dim = part("vision_model.config.projection_dim")

    def __init__(self, hf_model: HFCLIPModel):
        super().__init__()
        self.add_module("vision_model", hf_model.vision_model)
        self.add_module("visual_projection", hf_model.visual_projection)

    def forward(self, x: Tensor) -> Tensor:
        side = self.input_resolution
        if tuple(x.shape[-2:]) != (side, side):
            raise ImageSizeError(
                f"The images are {x.shape[-2]}x{x.shape[-1]}, the model reads {side}x{side}: use the preprocess that "
                "load returned with it"
            )
        return self.visual_projection(self.pooled(x))

    def pooled(self, x: Tensor) -> Tensor:
        """Return what the tower gives the projection."""
        return self.vision_model(x, return_dict=True).pooler_output


class VisionTransformer(Visual):
    conv1 = part("vision_model.embeddings.patch_embedding")
    class_embedding = part("vision_model.embeddings.class_embedding")
    positional_embedding = part("vision_model.embeddings.position_embedding.weight")
    ln_pre = part("vision_model.pre_layrnorm")
    ln_post = part("vision_model.post_layernorm")
    proj = part("visual_projection.weight.T")

    def __init__(self, hf_model: HFCLIPModel):
        super().__init__(hf_model)
        self.add_module("transformer", Transformer(hf_model.vision_model.encoder))

    def pooled(self, x: Tensor) -> Tensor:
        if self.transformer.blocks is None:
            return super().pooled(x)
        x = self.ln_pre(self.vision_model.embeddings(x, False))
        return self.ln_post(self.transformer(x.transpose(0, 1))[0])  # (B, L, C) -> (L, B, C)


class ModifiedResNet(Visual):
    conv1, conv2, conv3 = (part(f"vision_model.stem.conv{i}") for i in (1, 2, 3))
    bn1, bn2, bn3 = (part(f"vision_model.stem.bn{i}") for i in (1, 2, 3))
    avgpool = part("vision_model.stem.pool")

    def __init__(self, hf_model: HFCLIPModel):
        super().__init__(hf_model)
        for number, stage in enumerate(hf_model.vision_model.stages, 1):
            self.add_module(f"layer{number}", stage)
        # no submodule: the parameters keep their names
        self.__dict__["pool"] = AttentionPool2d(hf_model.vision_model.attention_pool)

    @property
    def attnpool(self) -> AttentionPool2d:
        return self.__dict__["pool"]

    def pooled(self, x: Tensor) -> Tensor:
        if not _is_watched(self.attnpool):
            return super().pooled(x)
        x = self.vision_model.stem(x)
        for stage in self.vision_model.stages:
            x = stage(x)
        return self.attnpool(x)


def _is_watched(module: nn.Module) -> bool:
    """Return True if hooks or another forward were put on a module."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


class CLIP(OriginalNames):
    """Behave as the original's model, computed by `hf_model`.

    The attributes are live: `positional_embedding`, `logit_scale` and the modules are those of `hf_model`;
    `text_projection` and `visual.proj` are transposed views, through which changes and gradients reach the parameter
    (take them anew after `.to()`). What has no counterpart raises an AttributeError that says what to use.
    `state_dict` and `load_state_dict` speak the original's keys; the names of `named_parameters` begin like the
    original's (`visual.`, `transformer.`, `token_embedding.`, `ln_final.`) where a module there has a counterpart.
    """

    positional_embedding = part("hf_model.text_model.embeddings.position_embedding.weight")
    text_projection = part("hf_model.text_projection.weight.T")
    logit_scale = part("hf_model.logit_scale")
    context_length = part("hf_model.config.text_config.max_position_embeddings")
    vocab_size = part("token_embedding.num_embeddings")
    dtype = part("visual.conv1.weight.dtype")

    def __init__(self, hf_model: HFCLIPModel):
        super().__init__()
        visual_class = ModifiedResNet if hf_model.config.vision_config.is_resnet else VisionTransformer
        # before hf_model: named_parameters gives a shared parameter the first name it meets
        self.add_module("visual", visual_class(hf_model))
        self.add_module("transformer", Transformer(hf_model.text_model.encoder))
        self.add_module("token_embedding", hf_model.text_model.embeddings.token_embedding)
        self.add_module("ln_final", hf_model.text_model.final_layer_norm)
        self.add_module("hf_model", hf_model)
        self.training = hf_model.training
        self.register_state_dict_post_hook(_rename_saved)
        self.register_load_state_dict_pre_hook(_rename_loaded)

    def encode_image(self, image: Tensor) -> Tensor:
        """Embed pixels (B, 3, R, R) as (B, D), not normalized."""
        return self.visual(image)

    def encode_text(self, text: Tensor) -> Tensor:
        """Embed token ids (B, L) as (B, D), not normalized.

        A text is read up to its highest id (EOT), as in the original. Columns that no text reaches are left out, in
        steps of 16, save in compiled, traced or captured graphs, whose shapes must not depend on values.
        """
        if len(text) == 0:
            return self.text_projection[:0]
        end = text.argmax(-1)
        capturing = text.is_cuda and torch.cuda.is_current_stream_capturing()
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing() or capturing):
            length = max(end.tolist()) + 1
            text = text[:, : -(-length // COLUMNS) * COLUMNS]
        hidden = self._text_states(text)
        return self.hf_model.text_projection(hidden[torch.arange(len(end), device=end.device), end])

    def _text_states(self, text: Tensor) -> Tensor:
        text_model = self.hf_model.text_model
        if self.transformer.blocks is None:
            return text_model(text, return_dict=True).last_hidden_state
        x = text_model.embeddings(text, None, text_model.dtype)
        return self.ln_final(self.transformer(x.transpose(0, 1)).transpose(0, 1))  # (L, B, C) -> (B, L, C)

    def build_attention_mask(self) -> Tensor:
        """Return the causal mask (context_length, context_length) that the original adds to scores."""
        return causal_mask(self.context_length)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return `logits_per_image` (images, texts) and its transpose."""
        image_features, text_features = normalize(self.encode_image(image)), normalize(self.encode_text(text))
        logits_per_image = contrastive_logits(image_features, text_features, self.logit_scale)
        return logits_per_image, logits_per_image.t()


def _rename_saved(module: CLIP, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict) -> None:
    ours = f"{prefix}hf_model."
    tensors = {key.removeprefix(ours): tensor for key, tensor in state_dict.items() if key.startswith(ours)}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]
    for key, tensor in to_original(tensors, module.hf_model.config).items():
        state_dict[prefix + key] = tensor


def _rename_loaded(
    module: CLIP,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Load under the original's names, report in them what is missing, unexpected or of another shape."""
    given = {key.removeprefix(prefix): state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    own = module.hf_model.state_dict(keep_vars=True)
    expected = to_original({key: tensor.detach() for key, tensor in own.items()}, module.hf_model.config)
    missing_keys += [prefix + key for key in expected if key not in given]
    unexpected_keys += [prefix + key for key in given if key not in expected and key not in BOOKKEEPING]
    for key, tensor in expected.items():
        if key in given and given[key].shape != tensor.shape:
            shapes = f"{tuple(given[key].shape)} in the state dict, {tuple(tensor.shape)} in the model"
            error_msgs.append(f"size mismatch for {prefix}{key}: {shapes}")
            del given[key]
    tensors = to_hf({key: given.get(key, tensor) for key, tensor in expected.items()}, module.hf_model.config)
    names = {id(tensor): key for key, tensor in own.items()}
    for own_tensors in (module.named_parameters, module.named_buffers):
        for name, tensor in own_tensors(remove_duplicate=False):
            state_dict[prefix + name] = tensors[names[id(tensor)]]


def convert_weights(model: nn.Module) -> None:
    """Convert the weights of convolutions, linear layers and attention to fp16, as the original does, in place."""

    def convert(module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.half()

    model.apply(convert)


def build_model(state_dict: dict[str, Tensor]) -> CLIP:
    """Build a model in the fp16 mix, over the tensors of an original state dict where they have its dtypes.

    Raises CheckpointError unless they are those of a CLIP.
    """
    return build_variant(state_dict, OPENAI)


def build_variant(state_dict: dict[str, Tensor], variant: Variant) -> CLIP:
    """Build a model as `build_model`, of another variant than OpenAI's own."""
    config = infer_config(state_dict, variant)
    tensors = to_hf(state_dict, config)
    with torch.device("meta"):
        hf_model = HFCLIPModel(config)
    hf_model.load_state_dict(tensors, assign=True)
    convert_weights(hf_model)
    return CLIP(hf_model.eval())


__all__ = ["CLIP", "ImageSizeError", "build_model", "convert_weights"]
