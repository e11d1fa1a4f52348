"""CLIP: the text Transformer, the Vision Transformer, and the joint model (paper section 2, original `clip/model.py`).

The text tower and the ViT name their parameters as transformers' own CLIP does, so weights and LoRA recipes carry over.

Axes in the shape comments: B images or texts, L tokens, N patches, C the width of a tower, H x W pixels or positions of
a feature map, D the size of the embedding space.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,  # noqa: F401 (diffusers loads a class by a base class that its module names)
)
from transformers import initialization as init
from transformers.activations import ACT2FN
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
    HFCLIPVisionTower,
    check_images,
    check_texts,
    contrastive_logits,
    contrastive_loss,
    eager_attention_forward,
    interpolate_positions,
    multi_head_attention,
    normalize,
    pooled_output,
    unexpected_keys,
)
from .modeling_hf_clip_resnet import HFCLIPResNetModel


class HFCLIPLayerNorm(nn.LayerNorm):
    """LayerNorm that computes in float32 whatever the dtype of its weights; in float64 if its input is."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class HFCLIPAttention(nn.Module):
    """Multi-head attention of a Transformer layer, causal in the text tower."""

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
        """Initialize as `nn.MultiheadAttention` does: Xavier-uniform over its packed (3 * width, width) projection."""
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
        # set_attn_implementation looks for this call in the file of the model's class
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = multi_head_attention(
            self, query, key, value, attention_mask, dropout, attend=attend, **kwargs
        )
        return self.out_proj(output), weights

    def attend_to_itself(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute the attention of each position (B, L, C) to itself alone: all its weight lies on its own value."""
        return self.out_proj(self.v_proj(hidden_states))


class HFCLIPMLP(nn.Module):
    """The two linear layers of a Transformer layer, with the activation between them."""

    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class HFCLIPEncoderLayer(GradientCheckpointingLayer):
    """Residual attention block: attention, then the MLP, each after a LayerNorm and added to its input."""

    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.layer_norm1 = HFCLIPLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = HFCLIPAttention(config)
        self.layer_norm2 = HFCLIPLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = HFCLIPMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attend: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Run the block on (B, L, C); `attend` takes the place of the layer's own attention."""
        x = self.layer_norm1(hidden_states)
        attended = self.self_attn(x, attention_mask, **kwargs)[0] if attend is None else attend(x)
        return self.add_attended(hidden_states, attended)

    def add_attended(self, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Finish the block after its attention: both residual sums, and the MLP."""
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class HFCLIPEncoder(nn.Module):
    """The stack of Transformer layers."""

    def __init__(self, config: HFCLIPTextConfig | HFCLIPVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(HFCLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return hidden_states


class HFCLIPTextEmbeddings(nn.Module):
    """Token embeddings plus learned position embeddings."""

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__()
        self.config = config
        width, dtype = config.hidden_size, torch.float32
        self.token_embedding = nn.Embedding(config.vocab_size, width, dtype=dtype)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, width, dtype=dtype)

    def initialize_parameters(self) -> None:
        init.normal_(self.token_embedding.weight, std=0.02)
        init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        length = input_ids.shape[-1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"the texts are {length} tokens long, the model reads at most {self.config.max_position_embeddings}: "
                "pass truncation=True to the tokenizer"
            )
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)
        # the tables are float32 in a half-precision model too: the sum is rounded as the original rounds it
        return self.token_embedding(input_ids).to(dtype) + self.position_embedding(position_ids).to(dtype)


class HFCLIPPatchEmbedding(nn.Conv2d):
    """Convolution whose stride equals its kernel, so that it embeds each P x P patch by itself.

    (B, 3, H, W) becomes (B, C, H / P, W / P).
    """


class HFCLIPVisionEmbeddings(nn.Module):
    """Patch embeddings behind the class embedding, plus learned position embeddings."""

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size, dtype=torch.float32))
        self.patch_embedding = HFCLIPPatchEmbedding(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.grid_size**2 + 1, config.hidden_size, dtype=torch.float32)

    def initialize_parameters(self) -> None:
        init.normal_(self.class_embedding, std=self.config.hidden_size**-0.5)
        init.normal_(self.position_embedding.weight, std=self.config.hidden_size**-0.5)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> torch.Tensor:
        check_images(pixel_values, self.config, self.config.patch_size, interpolate_pos_encoding)
        height, width = pixel_values.shape[-2:]
        positions = self.position_embedding(torch.arange(self.config.grid_size**2 + 1, device=pixel_values.device))
        if interpolate_pos_encoding and (height, width) != (self.config.image_size, self.config.image_size):
            patch_size = self.config.patch_size
            positions = interpolate_positions(positions, (height // patch_size, width // patch_size))
        x = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))  # (B, C, rows, columns)
        x = x.flatten(2)  # (B, C, rows, columns) -> (B, C, N)
        x = x.transpose(1, 2)  # (B, C, N) -> (B, N, C)
        class_embedding = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)  # (C,) -> (B, 1, C)
        x = torch.cat([class_embedding, x], 1)  # (B, N, C) -> (B, 1 + N, C)
        return x + positions.to(x.dtype)


class HFCLIPTransformerModel(HFCLIPPreTrainedModel):
    """Base class of the two Transformer towers."""

    _no_split_modules = ["HFCLIPTextEmbeddings", "HFCLIPVisionEmbeddings", "HFCLIPEncoderLayer"]
    _can_record_outputs = {"hidden_states": HFCLIPEncoderLayer, "attentions": HFCLIPAttention}


class HFCLIPTextModel(HFCLIPTransformerModel):
    """Encode texts with CLIP's causal text Transformer (paper section 2.4).

    `last_hidden_state` (B, L, C) is normalized; `pooler_output` (B, C) is its first EOT position. Texts need no padding
    to 77 columns and no attention mask: the tower is causal, and nothing after EOT is read.

    Args:
        config: Sizes of the tower, the activation, and the EOT id.

    Example:
        >>> tower = HFCLIPTextModel.from_pretrained("clip-rn50")
        >>> states = tower(input_ids).last_hidden_state  # (B, L, C)
    """

    _auto_class = "AutoModel"
    config_class = HFCLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    _keep_in_fp32_modules_strict = [
        "token_embedding",
        "position_embedding",
        "layer_norm1",
        "layer_norm2",
        "final_layer_norm",
    ]
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
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode `input_ids` (B, L), integers; L is at most `max_position_embeddings`."""
        check_texts(input_ids, attention_mask, self.config)
        input_ids = input_ids.reshape(-1, input_ids.shape[-1])  # (..., L) -> (B, L)
        eot = self.first_eot(input_ids)  # (B, L) -> (B,)
        x = self.embeddings(input_ids, position_ids, self.dtype)  # (B, L) -> (B, L, C)
        # without a cache, by place: transformers 5.24 renamed the argument
        attention_mask = create_causal_mask(self.config, x, attention_mask, None)
        x = self.encoder(x, attention_mask, **kwargs)
        x = self.final_layer_norm(x)
        # a text is read at its end, where the causal attention has seen all of it
        pooled = x[torch.arange(x.shape[0], device=eot.device), eot]  # (B, L, C) -> (B, C)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)

    def first_eot(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the position (B,) where each text (B, L) ends: its first EOT, or its highest id if it has none."""
        highest = input_ids.int().argmax(-1)  # as the original pools: EOT is the last id of its vocabulary
        if self.config.eos_token_id is None:
            return highest
        # the first match, because padding may reuse the EOT id
        is_eot = input_ids == self.config.eos_token_id
        return torch.where(is_eot.any(-1), is_eot.int().argmax(-1), highest)


class HFCLIPVisionModel(HFCLIPVisionTower, HFCLIPTransformerModel):
    """Encode images with CLIP's Vision Transformer (paper section 2.4).

    `last_hidden_state` (B, 1 + patches, C) has the class token first; `pooler_output` (B, C) is that token, normalized.

    Args:
        config: Sizes of the tower and the activation.

    Raises:
        ValueError: The configuration is a ResNet's.

    Example:
        >>> tower = HFCLIPVisionModel.from_pretrained("clip-vit-base-patch32")
        >>> patches = tower.dense_features(pixel_values)  # (B, C, H, W)
    """

    _auto_class = "AutoModel"
    config_class = HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keep_in_fp32_modules_strict = [
        "class_embedding",
        "position_embedding",
        "layer_norm1",
        "layer_norm2",
        "pre_layrnorm",
        "post_layernorm",
    ]
    _keys_to_ignore_on_load_unexpected = unexpected_keys(
        "text_model", "text_projection", "visual_projection", "logit_scale"
    )

    def __init__(self, config: HFCLIPVisionConfig):
        if config.model_type != HFCLIPVisionConfig.model_type:
            raise ValueError(f"HFCLIPVisionModel takes a ViT, not {config.model_type!r}: use HFCLIPResNetModel")
        super().__init__(config)
        self.embeddings = HFCLIPVisionEmbeddings(config)
        # transformers' CLIP spells the name so, and files hold it
        self.pre_layrnorm = HFCLIPLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = HFCLIPEncoder(config)
        self.post_layernorm = HFCLIPLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encode `pixel_values` (B, 3, H, W), normalized by the processor."""
        x = self.embeddings(pixel_values, interpolate_pos_encoding)  # (B, 3, H, W) -> (B, 1 + N, C)
        x = self.pre_layrnorm(x)
        x = self.encoder(x, **kwargs)
        pooled = self.post_layernorm(x[:, 0])  # (B, 1 + N, C) -> (B, C): the class token
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)

    def dense_embeds(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Pool each patch in place of the class token (B, C, H, W); in the last layer it attends to itself alone."""
        x = self.embeddings(pixel_values, interpolate_pos_encoding)  # (B, 3, H, W) -> (B, 1 + N, C)
        x = self.pre_layrnorm(x)
        *layers, last = self.encoder.layers
        for layer in layers:
            x = layer(x)
        x = last(x, attend=last.self_attn.attend_to_itself)
        return self.feature_map(self.post_layernorm(x), *pixel_values.shape[-2:])

    def feature_map(self, last_hidden_state: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Arrange the patches of images of `height` x `width` pixels as a map (B, C, H, W), without the class token."""
        rows, columns = height // self.config.patch_size, width // self.config.patch_size
        patches = last_hidden_state[:, 1:].transpose(1, 2)  # (B, 1 + N, C) -> (B, C, N)
        return patches.unflatten(2, (rows, columns))  # (B, C, N) -> (B, C, H, W)


def vision_tower(config: PreTrainedConfig) -> HFCLIPVisionModel | HFCLIPResNetModel:
    return (HFCLIPResNetModel if config.is_resnet else HFCLIPVisionModel)._from_config(config)


class HFCLIPNoProjection(nn.Identity):
    """The image projection that a ResNet does not need, named so that libraries refuse to wrap it in clear words."""

    def extra_repr(self) -> str:
        return "a ResNet projects in vision_model.attention_pool: name out_proj"


def visual_projection(config: PreTrainedConfig) -> nn.Module:
    """Build the image projection; a ResNet projects in its attention pooling."""
    if config.is_resnet:
        return HFCLIPNoProjection()
    return HFCLIPProjection(config.hidden_size, config.projection_dim)


class HFCLIPModel(HFCLIPPreTrainedModel):
    """Score images against texts with both towers of CLIP, and compute the contrastive loss (paper figure 3).

    `encode_image` and `encode_text` return embeddings as plain tensors, unnormalized. `get_image_features` and
    `get_text_features` return them as `pooler_output`, as transformers' own CLIP does.

    Args:
        config: Both towers. `from_pretrained` and `hf_clip.load_clip` make the model with its weights.

    Example:
        >>> model = HFCLIPModel.from_pretrained("clip-rn50")
        >>> scores = model(input_ids=ids, pixel_values=pixels).logits_per_image  # (images, texts)
    """

    _auto_class = "AutoModel"
    input_modalities = ("image", "text")
    _keep_in_fp32_modules_strict = ["logit_scale"]

    def __init__(self, config: HFCLIPConfig):
        super().__init__(config)
        self.text_model = HFCLIPTextModel._from_config(config.text_config)
        self.vision_model = vision_tower(config.vision_config)
        self.visual_projection = visual_projection(config.vision_config)
        self.text_projection = HFCLIPProjection(config.text_config.hidden_size, config.text_config.projection_dim)
        self.logit_scale = nn.Parameter(torch.empty((), dtype=torch.float32))
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
        """Run the vision tower; `pooler_output` holds the image embeddings (B, projection_dim), not normalized."""
        outputs = pooled_output(self.vision_model, pixel_values, interpolate_pos_encoding, **kwargs)
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
        """Run the text tower; `pooler_output` holds the text embeddings (B, projection_dim), not normalized."""
        outputs = pooled_output(self.text_model, input_ids, attention_mask, position_ids, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    def get_dense_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """Embed every position of the images in the space of the texts, unnormalized (MaskCLIP, Zhou et al., 2022).

        The last attention attends to the one position alone: what is left of it is its value and output projection.

        - ViT: `visual_projection(post_layernorm(last_layer(x)))` of each patch `x`, where the attention of `last_layer`
          is `out_proj(v_proj(x))`; its residual sums and MLP stay.
        - ResNet: `out_proj(v_proj(x))` of each position `x` of the last feature map, its position embedding added, with
          the projections of the attention pooling. The pooled embedding of a head that spreads evenly is their mean,
          together with that of the mean position.

        Args:
            pixel_values: (B, 3, height, width), normalized by the processor.
            interpolate_pos_encoding: Accept other sizes than the configured `image_size`.

        Returns:
            (B, projection_dim, H, W), a position for each patch of a ViT or for each 32 x 32 pixels of a ResNet.

        Example:
            ```python
            features = model.get_dense_image_features(processor(images=image, return_tensors="pt").pixel_values)
            ```
        """
        embeds = self.vision_model.dense_embeds(pixel_values, interpolate_pos_encoding)
        return self.visual_projection(embeds.movedim(1, -1)).movedim(-1, 1)  # (B, C, H, W) -> (B, D, H, W)

    def encode_image(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Return image embeddings (B, projection_dim), not normalized."""
        return self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True).pooler_output

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return text embeddings (B, projection_dim), not normalized."""
        return self.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> CLIPOutput:
        """Return `logits_per_image` (images, texts) and its transpose; embeddings come normalized.

        With `return_loss` the i-th image belongs to the i-th text, and `loss` is the symmetric cross-entropy of paper
        figure 3.
        """
        if pixel_values is None or input_ids is None:
            missing, method = (
                ("pixel_values", "get_text_features") if pixel_values is None else ("input_ids", "get_image_features")
            )
            raise ValueError(f"{missing} is missing, the joint model scores images against texts: call {method}")
        vision_outputs = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        text_outputs = self.get_text_features(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        image_embeds = normalize(vision_outputs.pooler_output)
        text_embeds = normalize(text_outputs.pooler_output.to(image_embeds.device))
        logits_per_image = contrastive_logits(image_embeds, text_embeds, self.logit_scale.to(image_embeds.device))
        loss = None
        if return_loss:
            if image_embeds.shape[0] != text_embeds.shape[0]:
                raise ValueError(
                    f"return_loss pairs the i-th image with the i-th text, got {image_embeds.shape[0]} images and "
                    f"{text_embeds.shape[0]} texts: give as many of both"
                )
            loss = contrastive_loss(logits_per_image)
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
    """Embed texts: the text tower and its projection, `text_embeds` (B, projection_dim), unnormalized.

    Args:
        config: The text tower's.

    Example:
        >>> model = HFCLIPTextModelWithProjection.from_pretrained("clip-rn50")
        >>> embeds = model(input_ids).text_embeds
    """

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
        outputs = pooled_output(self.text_model, input_ids, attention_mask, position_ids, **kwargs)
        return CLIPTextModelOutput(
            text_embeds=self.text_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class HFCLIPVisionModelWithProjection(HFCLIPPreTrainedModel):
    """Embed images: a vision tower of either family and its projection, `image_embeds` (B, D), unnormalized.

    Args:
        config: The vision tower's, which decides the family.

    Example:
        >>> model = HFCLIPVisionModelWithProjection.from_pretrained("clip-rn50")
        >>> embeds = model(pixel_values).image_embeds
    """

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
        outputs = pooled_output(self.vision_model, pixel_values, interpolate_pos_encoding, **kwargs)
        return CLIPVisionModelOutput(
            image_embeds=self.visual_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class HFCLIPForImageClassification(HFCLIPPreTrainedModel):
    """Classify images with a linear layer over the mean of a vision tower's positions, for either family.

    The ViT's class token and the ResNet's attention pooling are left out, as in transformers' own CLIP.

    Args:
        config: Both towers, and `num_labels`.

    Example:
        >>> model = HFCLIPForImageClassification.from_pretrained("clip-rn50", num_labels=10)
        >>> logits = model(pixel_values).logits  # (B, 10)
    """

    _auto_class = "AutoModelForImageClassification"
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
        """Score classes; `labels` (B,) are class numbers, or as `problem_type` says."""
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        features = self.vision_model.feature_map(outputs.last_hidden_state, *pixel_values.shape[-2:])
        logits = self.classifier(features.mean((2, 3)))  # (B, C, H, W) -> (B, C)
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
