"""CLIP (paper section 2.4) under the names, constructors, axes and bits of the original's `clip/model.py`.

Programs written for the original can extend, patch, hook and average these modules. `to_hf_model` and `from_hf_model`
lead to `HFCLIPModel` and back.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..model.configuration_hf_clip import HFCLIPConfig
from ..model.modeling_hf_clip import HFCLIPModel
from .errors import CheckpointError
from .infer_config import infer_config
from .key_mapping import BOOKKEEPING, check_shapes, to_hf, to_original
from .random_draws import CountedDraws, skip_draws
from .variants import OPENAI, Variant

_HEAD_WIDTH = 64
_EXPANSION = 4


class ImageSizeError(ValueError, RuntimeError):
    """Raised for images of another size than the model's; a RuntimeError as in the original."""


class LayerNorm(nn.LayerNorm):
    """Layer normalization in float32 whatever the dtype of its input, which the result has again."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, dtype = self.weight, self.bias, torch.float32
        # after `.half()` or `.double()` of a whole model, which the original then cannot compute
        if weight is not None and weight.dtype != dtype:
            dtype = torch.promote_types(weight.dtype, dtype)
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return F.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU that the nine checkpoints were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


# --- ResNet -----------------------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """Residual block of three convolutions whose stride is an average pool before the last one, against aliasing."""

    expansion = _EXPANSION

    def __init__(self, inplanes: int, planes: int, stride: int = 1):
        super().__init__()
        outplanes = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample = None
        self.stride = stride
        if stride > 1 or inplanes != outplanes:
            # "-1" leaves the published keys 0 and 1 to the convolution and its norm
            shortcut = [nn.AvgPool2d(stride), nn.Conv2d(inplanes, outplanes, 1, bias=False), nn.BatchNorm2d(outplanes)]
            self.downsample = nn.Sequential(OrderedDict(zip(("-1", "0", "1"), shortcut, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu3(out)


class AttentionPool2d(nn.Module):
    """Attention pooling: the mean of a feature map attends to all its positions and itself.

    Args:
        spacial_dim: Side of the feature map.
        embed_dim: Its channels.
        num_heads: Attention heads.
        output_dim: Width of the result; `embed_dim` unless given.
    """

    def __init__(self, spacial_dim: int, embed_dim: int, num_heads: int, output_dim: int | None = None):
        super().__init__()
        positions = spacial_dim**2 + 1
        self.positional_embedding = nn.Parameter(torch.randn(positions, embed_dim) / embed_dim**0.5)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.c_proj = nn.Linear(embed_dim, output_dim or embed_dim)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)  # (B, C, H, W) -> (HW, B, C)
        x = torch.cat([x.mean(0, keepdim=True), x])  # (1 + HW, B, C)
        x = x + self.positional_embedding[:, None].to(x.dtype)
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        pooled, _ = F.multi_head_attention_forward(
            x[:1],
            x,
            x,
            x.shape[-1],
            self.num_heads,
            in_proj_weight=None,
            in_proj_bias=bias,
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            training=self.training,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return pooled.squeeze(0)  # (1, B, D) -> (B, D)


class ModifiedResNet(nn.Module):
    """ResNet with a stem of three convolutions, anti-aliased strides, and attention pooling.

    Args:
        layers: Blocks in each of the four stages.
        output_dim: Width of the embedding.
        heads: Heads of the attention pooling.
        input_resolution: Side of the images in pixels.
        width: Channels after the stem.
    """

    def __init__(
        self, layers: Sequence[int], output_dim: int, heads: int, input_resolution: int = 224, width: int = 64
    ):
        super().__init__()
        self.output_dim = output_dim
        self.input_resolution = input_resolution
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)

        self._inplanes = width  # where the next stage begins; subclasses build further stages from it
        self.layer1 = self._make_layer(width, layers[0])
        self.layer2 = self._make_layer(width * 2, layers[1], stride=2)
        self.layer3 = self._make_layer(width * 4, layers[2], stride=2)
        self.layer4 = self._make_layer(width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool2d(input_resolution // 32, width * 32, heads, output_dim)

    def _make_layer(self, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        stage = nn.Sequential()
        for index in range(blocks):
            stage.append(Bottleneck(self._inplanes, planes, stride if index == 0 else 1))
            self._inplanes = planes * Bottleneck.expansion
        return stage

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.conv1.weight.dtype)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))
        x = self.avgpool(x)  # (B, width, R / 4, R / 4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, 32 * width, R / 32, R / 32)
        return self.attnpool(x)  # (B, D)


# --- Transformers -----------------------------------------------------------------------------------------------------


class ResidualAttentionBlock(nn.Module):
    """Pre-norm Transformer block over (length, batch, width).

    Args:
        d_model: Width.
        n_head: Attention heads.
        attn_mask: Added to the scores; of longer ones than the input, the last rows and columns. No buffer: it stays on
            its device, and is copied to the input's as it is used.
    """

    def __init__(self, d_model: int, n_head: int, attn_mask: Tensor | None = None):
        super().__init__()
        self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model)
        layers = [nn.Linear(d_model, d_model * _EXPANSION), QuickGELU(), nn.Linear(d_model * _EXPANSION, d_model)]
        self.mlp = nn.Sequential(OrderedDict(zip(("c_fc", "gelu", "c_proj"), layers, strict=True)))
        self.ln_2 = LayerNorm(d_model)
        self.attn_mask = attn_mask

    def attention(self, x: Tensor) -> Tensor:
        """Attend among the positions of `x` (L, B, C), which is normalized."""
        mask, length = self.attn_mask, x.shape[0]
        if mask is not None:
            mask = mask[..., -length:, -length:].to(x.device, x.dtype)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Stack of residual attention blocks over (length, batch, width)."""

    def __init__(self, width: int, layers: int, heads: int, attn_mask: Tensor | None = None):
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width, heads, attn_mask) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class VisionTransformer(nn.Module):
    """ViT with a norm before its blocks, read at the class token.

    Args:
        input_resolution: Side of the images in pixels.
        patch_size: Side of a patch in pixels.
        width: Channels of a token.
        layers: Blocks.
        heads: Attention heads of a block.
        output_dim: Width of the embedding; with `proj = None` the model returns `width` channels.
    """

    def __init__(self, input_resolution: int, patch_size: int, width: int, layers: int, heads: int, output_dim: int):
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        tokens = (input_resolution // patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).permute(0, 2, 1)  # (B, C, H, W) -> (B, HW, C)
        start = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([start, x], 1) + self.positional_embedding.to(x.dtype)
        x = self.ln_pre(x).permute(1, 0, 2)  # (B, 1 + HW, C) -> (1 + HW, B, C)
        x = self.transformer(x).permute(1, 0, 2)  # (1 + HW, B, C) -> (B, 1 + HW, C)
        x = self.ln_post(x[:, 0, :])
        return x if self.proj is None else x @ self.proj


# --- CLIP -------------------------------------------------------------------------------------------------------------


class CLIP(nn.Module):
    """Image encoder, causal text Transformer, and the scale of their cosines.

    Args:
        embed_dim: Width of the embeddings that both encoders share.
        image_resolution: Side of the images in pixels.
        vision_layers: Blocks of a ViT; a tuple or list of four numbers makes the image encoder a ResNet.
        vision_width: Channels of a ViT's tokens, or after a ResNet's stem.
        vision_patch_size: Side of a ViT's patches, an integer; unused by a ResNet.
        context_length: Columns of the token ids.
        vocab_size: Number of tokens.
        transformer_width: Channels of the text Transformer.
        transformer_heads: Its attention heads.
        transformer_layers: Its blocks.

    Example:
        >>> model = CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)  # ViT-B/32, as training starts
        >>> logits_per_image, logits_per_text = model(images, clip.tokenize(["a dog", "a cat"]))
    """

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: tuple[int, ...] | list[int] | int,
        vision_width: int,
        vision_patch_size: Any,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
    ):
        super().__init__()
        self.context_length = context_length
        if isinstance(vision_layers, tuple | list):
            heads = vision_width * 32 // _HEAD_WIDTH
            self.visual = ModifiedResNet(vision_layers, embed_dim, heads, image_resolution, vision_width)
        else:
            heads = vision_width // _HEAD_WIDTH
            self.visual = VisionTransformer(
                image_resolution, vision_patch_size, vision_width, vision_layers, heads, embed_dim
            )
        mask = self.build_attention_mask()
        self.transformer = Transformer(transformer_width, transformer_layers, transformer_heads, mask)
        self.vocab_size = vocab_size
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """Draw the parameters that training starts from, in place."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if isinstance(self.visual, ModifiedResNet):
            if (pool := self.visual.attnpool) is not None:
                std = pool.c_proj.in_features**-0.5
                for projection in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
                    nn.init.normal_(projection.weight, std=std)
            for stage in (self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4):
                for name, parameter in stage.named_parameters():
                    if name.endswith("bn3.weight"):  # a fresh block is the identity
                        nn.init.zeros_(parameter)
        width_std = self.transformer.width**-0.5
        residual_std = width_std * (2 * self.transformer.layers) ** -0.5
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width_std)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * self.transformer.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)
        if self.text_projection is not None:
            nn.init.normal_(self.text_projection, std=width_std)

    def build_attention_mask(self) -> Tensor:
        """Return the causal mask (context_length, context_length): -inf above the diagonal, 0 elsewhere."""
        return torch.full((self.context_length, self.context_length), float("-inf")).triu_(1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the image encoder's first convolution, which images and token embeddings are cast to."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: Tensor) -> Tensor:
        """Embed pixels (B, 3, R, R) as (B, D), not normalized."""
        image = image.to(self.dtype)
        return self.visual(image) if torch.jit.is_scripting() else self._embed(image)

    @torch.jit.unused
    def _embed(self, image: Tensor) -> Tensor:
        try:
            return self.visual(image)
        except RuntimeError as error:
            # `visual` may have been given another resolution than it says, so shapes are only looked at after the fact
            side = getattr(self.visual, "input_resolution", None)
            height, width = image.shape[-2:]
            if type(error) is not RuntimeError or side is None or height == width == side:
                raise
            raise ImageSizeError(
                f"images are {height}x{width}, the model reads {side}x{side}: use the preprocess that load returned "
                "with it"
            ) from error

    def encode_text(self, text: Tensor) -> Tensor:
        """Embed token ids (B, L) as (B, D), not normalized; a text is read at its highest id, which is EOT."""
        positions = self.positional_embedding[: text.shape[-1]]
        x = self.token_embedding(text).to(self.dtype) + positions.to(self.dtype)
        x = self.transformer(x.permute(1, 0, 2))  # (B, L, C) -> (L, B, C)
        x = self.ln_final(x.permute(1, 0, 2)).to(self.dtype)  # (L, B, C) -> (B, L, C)
        return x[torch.arange(x.shape[0]), text.argmax(dim=-1)] @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Score pixels and token ids: logits (images, texts) and their transpose."""
        image_features, text_features = self.encode_image(image), self.encode_text(text)
        image_features = image_features / image_features.norm(2, -1, True)
        text_features = text_features / text_features.norm(2, -1, True)
        # scale first: another order of the two products gives other bits
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()
        return logits_per_image, logits_per_image.t()


# --- building ---------------------------------------------------------------------------------------------------------


def convert_weights(model: nn.Module) -> None:
    """Convert convolutions, linear layers, attention and projections to fp16, as the original does, in place.

    Norms, embeddings and `logit_scale` stay as they are: this is the mix that the published files hold.
    """
    for module in model.modules():
        names = ["text_projection", "proj"]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            names += ["weight", "bias"]
        if isinstance(module, nn.MultiheadAttention):
            names += ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
            names += ["in_proj_bias", "bias_k", "bias_v"]
        for name in names:
            if isinstance(tensor := getattr(module, name, None), Tensor):
                tensor.data = tensor.data.half()


def build_model(state_dict: dict[str, Tensor]) -> CLIP:
    """Build the model of an original state dict in the fp16 mix, in evaluation mode, with tensors of its own.

    Raises:
        CheckpointError: The tensors are not those of a CLIP.
    """
    return build_variant(state_dict, OPENAI)


def build_variant(
    state_dict: dict[str, Tensor],
    variant: Variant,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> CLIP:
    """Build a model as `build_model`, of another variant than OpenAI's own.

    Args:
        state_dict: Tensors under the original's keys.
        variant: What the tensors do not tell.
        device: Where the model's tensors are made.
        dtype: To hold all floating-point tensors in, after they were rounded to the mix; the mix unless given.

    Raises:
        CheckpointError: The tensors are not those of a CLIP.
    """
    config = infer_config(state_dict, variant)
    with CountedDraws() as draws:
        model = _empty(config)
    skip_draws(draws.count)  # as if the model had been initialized: seeded programs go on with the same numbers
    convert_weights(model)
    expected = model.state_dict()
    tensors = {key: tensor for key, tensor in state_dict.items() if key not in BOOKKEEPING}
    # some tools leave this count out; nothing is computed with it
    counts = (key for key in expected if key.endswith(".num_batches_tracked"))
    tensors = {key: torch.tensor(0) for key in counts} | tensors
    check_shapes(tensors, expected)
    rounded = {key: tensors[key].to(target.dtype) for key, target in expected.items()}
    return _fill(model, rounded, device, dtype).eval()


def from_hf_model(hf_model: HFCLIPModel) -> CLIP:
    """Return the CLIP of the same weights, dtypes, device and mode; its tensors are copies."""
    tensors = to_original({key: tensor.detach() for key, tensor in hf_model.state_dict().items()}, hf_model.config)
    return _fill(_empty(hf_model.config), tensors, hf_model.device).train(hf_model.training)


def to_hf_model(model: CLIP) -> HFCLIPModel:
    """Return the HFCLIPModel of the same weights, dtypes, device and mode; its tensors are copies.

    Raises:
        CheckpointError: The model was given parts that an HFCLIPModel has no place for, or lacks some.
    """
    state_dict = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    visual, block = model.visual, model.transformer.resblocks[0]
    pool = visual.attnpool if isinstance(visual, ModifiedResNet) else visual.transformer.resblocks[0].attn
    activation = _activation_name(block.mlp.gelu)
    config = infer_config(state_dict, Variant(activation, pool.num_heads, block.attn.num_heads))
    config.text_config.layer_norm_eps = model.ln_final.eps
    if isinstance(visual, ModifiedResNet):
        config.vision_config.batch_norm_eps = visual.bn1.eps
    else:
        config.vision_config.layer_norm_eps = visual.ln_pre.eps
        config.vision_config.hidden_act = _activation_name(visual.transformer.resblocks[0].mlp.gelu)
    with torch.device("meta"):
        hf_model = HFCLIPModel(config)
    tensors = {key: tensor.clone() for key, tensor in to_hf(state_dict, config).items()}
    hf_model.load_state_dict(tensors, assign=True)
    return hf_model.train(model.training)


def _empty(config: HFCLIPConfig) -> CLIP:
    """Make the model of a configuration without tensors: all are on the meta device."""
    text, vision = config.text_config, config.vision_config
    embed_dim: Any = config.projection_dim
    layers: Any = tuple(vision.depths) if vision.is_resnet else vision.num_hidden_layers
    with torch.device("meta"):
        model = CLIP(
            embed_dim,
            vision.image_size,
            layers,
            vision.width if vision.is_resnet else vision.hidden_size,
            None if vision.is_resnet else vision.patch_size,
            text.max_position_embeddings,
            text.vocab_size,
            text.hidden_size,
            text.num_attention_heads,
            text.num_hidden_layers,
        )
        _adapt(model.transformer, text)
        model.ln_final.eps = text.layer_norm_eps
        if vision.is_resnet:
            model.visual.attnpool.num_heads = vision.num_attention_heads
            for module in model.visual.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = vision.batch_norm_eps
        else:
            _adapt(model.visual.transformer, vision)
            model.visual.ln_pre.eps = model.visual.ln_post.eps = vision.layer_norm_eps
        if model.visual.conv1.in_channels != vision.num_channels:
            conv = model.visual.conv1
            side, stride, padding = conv.kernel_size, conv.stride, conv.padding
            model.visual.conv1 = nn.Conv2d(vision.num_channels, conv.out_channels, side, stride, padding, bias=False)
    mask = model.build_attention_mask()  # a constant, which no file holds
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    return model


def _adapt(transformer: Transformer, config) -> None:
    """Set the constants of the original's constructors: heads, activation, width of the MLP, epsilon."""
    for block in transformer.resblocks:
        block.attn.num_heads = config.num_attention_heads
        block.attn.head_dim = config.hidden_size // config.num_attention_heads
        block.ln_1.eps = block.ln_2.eps = config.layer_norm_eps
        if config.hidden_act != OPENAI.activation:
            block.mlp.gelu = ACT2FN[config.hidden_act]
        if config.intermediate_size != block.mlp.c_fc.out_features:
            block.mlp.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
            block.mlp.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)


def _activation_name(module: nn.Module) -> str:
    if isinstance(module, QuickGELU):
        return OPENAI.activation
    if isinstance(module, nn.GELU):
        return "gelu"
    for name in ACT2FN:
        if type(ACT2FN[name]) is type(module):
            return name
    raise CheckpointError(f"an HFCLIPModel has no activation {type(module).__name__}: take one of transformers' ACT2FN")


def _fill(
    model: CLIP, tensors: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype | None = None
) -> CLIP:
    """Fill an empty model with copies of `tensors`, one at a time; floating-point ones as `dtype`, if given."""
    copies = {}
    for key, tensor in tensors.items():
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        copies[key] = torch.empty(tensor.shape, dtype=kind, device=device).copy_(tensor)
    model.load_state_dict(copies, assign=True)
    return model


__all__ = [
    "CLIP",
    "AttentionPool2d",
    "Bottleneck",
    "ImageSizeError",
    "LayerNorm",
    "ModifiedResNet",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "build_model",
    "convert_weights",
    "from_hf_model",
    "to_hf_model",
]
