"""CLIP: the text Transformer, the Vision Transformer, and the joint model (paper section 2, original `clip/model.py`).

Parameters of the text tower and the ViT are named as in transformers' own CLIP, so weights and LoRA recipes carry over.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN, QuickGELUActivation
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPOutput, CLIPTextModelOutput, CLIPVisionModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_hf_clip import HFCLIPConfig, HFCLIPResNetConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from .modeling_hf_clip_base import (
    HFCLIPPreTrainedModel,
    HFCLIPProjection,
    check_image_size,
    contrastive_logits,
    interpolate_positions,
    multi_head_attention,
    normalize,
    unexpected_keys,
)
from .modeling_hf_clip_resnet import HFCLIPResNetModel
from .optimization_hf_clip import (
    HFCLIPFused,
    HFCLIPFusedMLP,
    HFCLIPFusedPatchEmbedding,
    HFCLIPPrefixes,
    runs_eagerly_on_cpu,
    up_to,
)


class HFCLIPLayerNorm(nn.LayerNorm):
    """Computes in float32 whatever the dtype of its input, and of its weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class HFCLIPAttention(nn.Module):
    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.is_causal = config.model_type == HFCLIPTextConfig.model_type
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def initialize_parameters(self) -> None:
        """As `nn.MultiheadAttention`, whose packed (3 * width, width) projection is Xavier-uniform."""
        bound = (6 / (4 * self.config.hidden_size)) ** 0.5
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            init.uniform_(projection.weight, -bound, bound)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            init.zeros_(projection.bias)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        dropout = self.config.attention_dropout
        output, weights = multi_head_attention(self, query, key, value, attention_mask, dropout, **kwargs)
        return self.out_proj(output), weights


class HFCLIPMLP(nn.Module):
    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))

    def fused(self) -> nn.Module:
        """Another activation than quick_gelu has no faster form."""
        return HFCLIPFusedMLP(self) if isinstance(self.activation_fn, QuickGELUActivation) else self


class HFCLIPEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.layer_norm1 = HFCLIPLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = HFCLIPAttention(config)
        self.layer_norm2 = HFCLIPLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = HFCLIPMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.layer_norm1(hidden_states), attention_mask, **kwargs)[0]
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class HFCLIPEncoder(nn.Module):
    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(HFCLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return hidden_states

    def fused(self) -> "HFCLIPFusedEncoder":
        return HFCLIPFusedEncoder(self)


class HFCLIPFusedEncoder(HFCLIPFused, HFCLIPEncoder):
    """Computes no more of the last layer, and of texts that begin alike, than what is read."""

    def __init__(self, exact: HFCLIPEncoder):
        nn.Module.__init__(self)
        self.layers = exact.layers

    def pooled(
        self, hidden_states: torch.Tensor, read: torch.Tensor, prefixes: HFCLIPPrefixes | None = None, **kwargs
    ) -> torch.Tensor:
        """The final states (B, C) of the positions `read` (B,).

        `hidden_states` is (B, L, C), where all attend to all, or (1, N, C) of N `prefixes`, where it is causal.
        """
        attend = prefixes and prefixes.attend
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, attend=attend, **kwargs)
        layer, attention = self.layers[-1], self.layers[-1].self_attn
        x = layer.layer_norm1(hidden_states)
        key, value = attention.k_proj(x), attention.v_proj(x)
        rows, mask = torch.arange(len(read), device=read.device), None
        if prefixes is not None:
            key, value = prefixes.spread(key), prefixes.spread(value)
            mask = up_to(read, key.shape[1])[:, None, None]  # (B, 1, 1, L)
            rows, read = 0, prefixes.number[rows, read]
        query = attention.q_proj(x[rows, read])[:, None]  # (B, 1, C)
        attended, _ = multi_head_attention(attention, query, key, value, mask, attend=ALL_ATTENTION_FUNCTIONS["sdpa"])
        hidden_states = hidden_states[rows, read] + attention.out_proj(attended[:, 0])
        return hidden_states + layer.mlp(layer.layer_norm2(hidden_states))


class HFCLIPTextEmbeddings(nn.Module):
    def __init__(self, config: HFCLIPTextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def initialize_parameters(self) -> None:
        init.normal_(self.token_embedding.weight, std=0.02)
        init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        length = input_ids.shape[-1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"The texts are {length} tokens long, the model reads at most {self.config.max_position_embeddings}: "
                "pass truncation=True to the tokenizer."
            )
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)
        return self.token_embedding(input_ids).to(dtype) + self.position_embedding(position_ids).to(dtype)


class HFCLIPPatchEmbedding(nn.Conv2d):
    def fused(self) -> HFCLIPFusedPatchEmbedding:
        return HFCLIPFusedPatchEmbedding(self)


class HFCLIPVisionEmbeddings(nn.Module):
    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.patch_embedding = HFCLIPPatchEmbedding(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.grid_size**2 + 1, config.hidden_size)

    def initialize_parameters(self) -> None:
        init.normal_(self.class_embedding, std=self.config.hidden_size**-0.5)
        init.normal_(self.position_embedding.weight, std=self.config.hidden_size**-0.5)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        positions = self.position_embedding(
            torch.arange(self.position_embedding.num_embeddings, device=pixel_values.device)
        )
        if not interpolate_pos_encoding:
            check_image_size(height, width, self.config)
        elif (height, width) != (self.config.image_size, self.config.image_size):
            patch_size = self.config.patch_size
            positions = interpolate_positions(positions, (height // patch_size, width // patch_size))
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
        class_embedding = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([class_embedding, patches], 1) + positions.to(patches.dtype)


class HFCLIPTransformerModel(HFCLIPPreTrainedModel):
    """What the two Transformer towers declare alike."""

    _no_split_modules = ["HFCLIPTextEmbeddings", "HFCLIPVisionEmbeddings", "HFCLIPEncoderLayer"]
    _can_record_outputs = {"hidden_states": HFCLIPEncoderLayer, "attentions": HFCLIPAttention}
    _keep_in_fp32_modules_strict = [
        "class_embedding",
        "token_embedding",
        "position_embedding",
        "layer_norm1",
        "layer_norm2",
        "pre_layrnorm",
        "post_layernorm",
        "final_layer_norm",
    ]

    def pools_early(self, pooled_only: bool, kwargs: Mapping[str, Any]) -> bool:
        """Whether to spare all but `pooler_output`: where the encoder can, and nothing else is asked for."""
        asked = (kwargs.get(flag, getattr(self.config, flag)) for flag in ("output_hidden_states", "output_attentions"))
        return pooled_only and isinstance(self.encoder, HFCLIPFusedEncoder) and not any(asked)


class HFCLIPTextModel(HFCLIPTransformerModel):
    """The text tower. `last_hidden_state` (B, L, C) is normalised, `pooler_output` (B, C) its first EOT position.

    Texts need no padding to 77 columns and no attention mask: the tower is causal and nothing after EOT is read.
    """

    config_class = HFCLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    _keys_to_ignore_on_load_unexpected = unexpected_keys(
        "vision_model", "text_projection", "visual_projection", "logit_scale"
    )

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__(config)
        self.embeddings = HFCLIPTextEmbeddings(config)
        self.encoder = HFCLIPEncoder(config)
        self.final_layer_norm = HFCLIPLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.post_init()

    def initialize_parameters(self) -> None:
        width_std = self.config.hidden_size**-0.5
        residual_std = width_std * (2 * self.config.num_hidden_layers) ** -0.5
        for layer in self.encoder.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                init.normal_(projection.weight, std=width_std)
            init.normal_(layer.self_attn.out_proj.weight, std=residual_std)
            init.normal_(layer.mlp.fc1.weight, std=(2 * self.config.hidden_size) ** -0.5)
            init.normal_(layer.mlp.fc2.weight, std=residual_std)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.token_embedding = value

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pooled_only: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """`input_ids` (B, L) integers, L at most `max_position_embeddings`. With `pooled_only` an optimised tower has
        no `last_hidden_state`."""
        input_ids = input_ids.view(-1, input_ids.shape[-1])
        eot = self.first_eot(input_ids)
        if (
            self.pools_early(pooled_only, kwargs)
            and runs_eagerly_on_cpu(input_ids)
            and position_ids is None
            and _reaches(attention_mask, eot)
        ):
            return BaseModelOutputWithPooling(pooler_output=self.pooled(input_ids, eot, **kwargs))
        hidden_states = self.embeddings(input_ids, position_ids, self.dtype)
        # without a cache, by place: its name is another from transformers 5.24 on
        attention_mask = create_causal_mask(self.config, hidden_states, attention_mask, None)
        hidden_states = self.final_layer_norm(self.encoder(hidden_states, attention_mask, **kwargs))
        pooled = hidden_states[torch.arange(hidden_states.shape[0], device=eot.device), eot]
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def first_eot(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where each text (B, L) ends; padding may reuse the EOT id."""
        return (input_ids == self.config.eos_token_id).int().argmax(-1)  # the first match

    def pooled(self, input_ids: torch.Tensor, eot: torch.Tensor, **kwargs) -> torch.Tensor:
        """`pooler_output` alone, from an optimised encoder."""
        texts, places = input_ids.where(up_to(eot, input_ids.shape[1]), 0).unique(dim=0, return_inverse=True)
        eot = self.first_eot(texts)
        prefixes = HFCLIPPrefixes.of(texts, eot)
        hidden_states = prefixes.gather(self.embeddings(texts, None, self.dtype))
        return self.final_layer_norm(self.encoder.pooled(hidden_states, eot, prefixes, **kwargs))[places]


def _reaches(attention_mask: torch.Tensor | None, eot: torch.Tensor) -> bool:
    """Whether all up to EOT is attended to, and so as if there were no mask."""
    if attention_mask is None:
        return True
    if attention_mask.ndim != 2:
        return False
    return bool((attention_mask.bool() | ~up_to(eot, attention_mask.shape[1])).all())


class HFCLIPVisionModel(HFCLIPTransformerModel):
    """The Vision Transformer: `last_hidden_state` (B, 1 + patches, C), `pooler_output` (B, C) from the class token."""

    config_class = HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = unexpected_keys(
        "text_model", "text_projection", "visual_projection", "logit_scale"
    )

    def __init__(self, config: HFCLIPVisionConfig):
        if config.model_type != HFCLIPVisionConfig.model_type:
            raise ValueError(f"HFCLIPVisionModel takes a ViT, not {config.model_type!r}: use HFCLIPResNetModel.")
        super().__init__(config)
        self.embeddings = HFCLIPVisionEmbeddings(config)
        # the name is transformers', typing error and all
        self.pre_layrnorm = HFCLIPLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = HFCLIPEncoder(config)
        self.post_layernorm = HFCLIPLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        pooled_only: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """`pixel_values` (B, 3, H, W), normalised by the processor. With `pooled_only` an optimised tower has no
        `last_hidden_state`."""
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values, interpolate_pos_encoding))
        if self.pools_early(pooled_only, kwargs):
            first = torch.zeros(len(hidden_states), dtype=torch.long, device=hidden_states.device)
            pooled = self.post_layernorm(self.encoder.pooled(hidden_states, first, **kwargs))
            return BaseModelOutputWithPooling(pooler_output=pooled)
        hidden_states = self.encoder(hidden_states, **kwargs)
        pooled = self.post_layernorm(hidden_states[:, 0])
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


def vision_tower(config: HFCLIPVisionConfig | HFCLIPResNetConfig) -> HFCLIPVisionModel | HFCLIPResNetModel:
    towers = {model.config_class.model_type: model for model in (HFCLIPVisionModel, HFCLIPResNetModel)}
    return towers[config.model_type]._from_config(config)


def visual_projection(config: HFCLIPVisionConfig | HFCLIPResNetConfig) -> nn.Module:
    """A ResNet's attention pooling has projected already."""
    if config.model_type == HFCLIPResNetConfig.model_type:
        return nn.Identity()
    return HFCLIPProjection(config.hidden_size, config.projection_dim)


class HFCLIPModel(HFCLIPPreTrainedModel):
    """Both towers and the logit scale: scores images against texts, and gives the contrastive loss."""

    input_modalities = ("image", "text")
    _keep_in_fp32_modules_strict = ["logit_scale"]

    def __init__(self, config: HFCLIPConfig):
        super().__init__(config)
        self.text_model = HFCLIPTextModel._from_config(config.text_config)
        self.vision_model = vision_tower(config.vision_config)
        self.visual_projection = visual_projection(config.vision_config)
        self.text_projection = HFCLIPProjection(config.text_config.hidden_size, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.post_init()

    def initialize_parameters(self) -> None:
        init.constant_(self.logit_scale, self.config.logit_scale_init_value)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The vision tower's output with the image embeddings (B, projection_dim), unnormalised, as `pooler_output`."""
        outputs = self.vision_model(
            pixel_values, interpolate_pos_encoding, pooled_only=True, return_dict=True, **kwargs
        )
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The text tower's output with the text embeddings (B, projection_dim), unnormalised, as `pooler_output`."""
        outputs = self.text_model(input_ids, attention_mask, position_ids, pooled_only=True, return_dict=True, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    def encode_image(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Image embeddings (B, projection_dim), unnormalised."""
        return self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True).pooler_output

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Text embeddings (B, projection_dim), unnormalised."""
        return self.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> CLIPOutput:
        """`logits_per_image` (images, texts) and its transpose; embeddings come normalised.

        With `return_loss` the i-th image belongs to the i-th text, and `loss` is the symmetric cross-entropy of paper
        figure 3.
        """
        vision_outputs = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        text_outputs = self.get_text_features(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        image_embeds = normalize(vision_outputs.pooler_output)
        text_embeds = normalize(text_outputs.pooler_output.to(image_embeds.device))
        logits_per_image = contrastive_logits(image_embeds, text_embeds, self.logit_scale.to(image_embeds.device))
        loss = None
        if return_loss:
            pairs = torch.arange(logits_per_image.shape[0], device=logits_per_image.device)
            loss = (F.cross_entropy(logits_per_image, pairs) + F.cross_entropy(logits_per_image.t(), pairs)) / 2
        return CLIPOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.t(),
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )


class HFCLIPTextModelWithProjection(HFCLIPPreTrainedModel):
    """The text tower and its projection: `text_embeds` (B, projection_dim), unnormalised."""

    config_class = HFCLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    _keys_to_ignore_on_load_unexpected = unexpected_keys("vision_model", "visual_projection", "logit_scale")

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__(config)
        self.text_model = HFCLIPTextModel._from_config(config)
        self.text_projection = HFCLIPProjection(config.hidden_size, config.projection_dim)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> CLIPTextModelOutput:
        outputs = self.text_model(input_ids, attention_mask, position_ids, pooled_only=True, return_dict=True, **kwargs)
        return CLIPTextModelOutput(
            text_embeds=self.text_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class HFCLIPVisionModelWithProjection(HFCLIPPreTrainedModel):
    """A vision tower of either family and its projection: `image_embeds` (B, projection_dim), unnormalised."""

    config_class = HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = unexpected_keys("text_model", "text_projection", "logit_scale")

    def __init__(self, config: HFCLIPVisionConfig | HFCLIPResNetConfig):
        super().__init__(config)
        self.vision_model = vision_tower(config)
        self.visual_projection = visual_projection(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> CLIPVisionModelOutput:
        outputs = self.vision_model(
            pixel_values, interpolate_pos_encoding, pooled_only=True, return_dict=True, **kwargs
        )
        return CLIPVisionModelOutput(
            image_embeds=self.visual_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class HFCLIPForImageClassification(HFCLIPPreTrainedModel):
    """A linear classifier on the mean of the last hidden state's positions, for either family.

    The ViT's class token and the ResNet's attention pooling are left out, as in transformers' own CLIP.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = unexpected_keys(
        "text_model", "text_projection", "visual_projection", "logit_scale"
    )

    def __init__(self, config: HFCLIPConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vision_model = vision_tower(config.vision_config)
        width = config.vision_config.hidden_size
        self.classifier = nn.Linear(width, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> ImageClassifierOutput:
        """`labels` (B,) class numbers, or as `problem_type` says."""
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        hidden = outputs.last_hidden_state
        if self.config.vision_config.model_type == HFCLIPResNetConfig.model_type:
            features = hidden.mean((2, 3))  # (B, C, H, W) -> (B, C)
        else:
            features = hidden[:, 1:].mean(1)  # (B, 1 + HW, C) -> (B, C)
        logits = self.classifier(features)
        return ImageClassifierOutput(
            loss=self.loss_function(labels, logits, self.config) if labels is not None else None,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "HFCLIPForImageClassification",
    "HFCLIPModel",
    "HFCLIPResNetModel",
    "HFCLIPTextModel",
    "HFCLIPTextModelWithProjection",
    "HFCLIPVisionModel",
    "HFCLIPVisionModelWithProjection",
]
