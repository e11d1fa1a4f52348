"""Maps on the grid of the model's positions: dense scores, gradients, attention rollout, and scores of windows.

The modules of the towers are called one by one, without hooks, settings and gradients of parameters, because other
threads may use the model.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..model.modeling_hf_clip_base import eager_attention_forward, multi_head_attention, normalize
from .geometry import stride_of

WINDOW_BATCH = 32


def is_resnet(model: PreTrainedModel) -> bool:
    """Return True for a CLIP whose image tower is a ResNet."""
    return model.config.vision_config.is_resnet


@torch.no_grad()
def dense(model: PreTrainedModel, pixel_values: Tensor, directions: Tensor) -> Tensor:
    """Score the dense features, normalized, against `directions` (T, D): (T, H, W)."""
    features = model.get_dense_image_features(pixel_values, interpolate_pos_encoding=True)[0].float()
    return torch.einsum("td,dhw->thw", directions, normalize(features.movedim(0, -1)).movedim(-1, 0))


def gradient(model: PreTrainedModel, pixel_values: Tensor, directions: Tensor) -> Tensor:
    """Weigh feature maps (ResNet) or attention (ViT) by the gradient of each score: (T, H, W), at least 0.

    ResNet: Grad-CAM (Selvaraju et al., 2017) on the last feature map. ViT: relevance of the class token, propagated
    through all layers by the positive part of gradient times attention (Chefer et al., 2021).
    """
    with torch.inference_mode(False), torch.enable_grad():
        # cloned, because autograd cannot record tensors of a caller's inference mode; requires_grad_, because a frozen
        # model records nothing unless its input asks for it
        pixel_values, directions = pixel_values.clone().requires_grad_(), directions.clone()
        recorded, pooled = (_resnet_states if is_resnet(model) else _vit_states)(model, pixel_values)
        scores = directions @ normalize(pooled[0].float())
        gradients = [torch.autograd.grad(score, recorded, retain_graph=True) for score in scores]
    explain = _grad_cam if is_resnet(model) else _propagated
    states = [state.detach().float() for state in recorded]
    maps = torch.stack([explain(states, [g.float() for g in of_one]) for of_one in gradients])
    return maps if is_resnet(model) else maps.unflatten(1, grid(model, pixel_values))


@torch.no_grad()
def rollout(model: PreTrainedModel, pixel_values: Tensor, directions: Tensor) -> Tensor:
    """Follow the mean attention of all layers back to the positions, the same for every text: (T, H, W).

    ViT: attention rollout (Abnar and Zuidema, 2020), with half of each layer as its residual. ResNet: the weights of
    the pooling; the weight of the mean position is spread over all positions.
    """
    weights = [layer.float().mean(1)[0] for layer in attention_weights(model, pixel_values)]
    if is_resnet(model):
        mean, rest = weights[0][0, 0], weights[0][0, 1:]
        flow = rest + mean / len(rest)
    else:
        flow = torch.eye(weights[0].shape[-1], device=weights[0].device)
        for layer in weights:
            flow = (layer @ flow + flow) / 2
        flow = flow[0, 1:]
    return flow.unflatten(0, grid(model, pixel_values)).expand(len(directions), -1, -1)


@torch.no_grad()
def score_windows(model: PreTrainedModel, groups: Iterable[Tensor], directions: Tensor, count: int) -> list[Tensor]:
    """Score groups of windows (N, 3, image_size, image_size), `count` in all, each as an image of its own: (T, N)."""
    found = []
    with tqdm(desc="windows", total=count, unit="window", delay=2, leave=False) as bar:
        for crops in groups:
            scores = []
            for batch in crops.split(WINDOW_BATCH):
                scores.append(directions @ normalize(model.encode_image(batch.to(model.device)).float()).T)
                bar.update(len(batch))
            found.append(torch.cat(scores, 1))
    return found


@torch.no_grad()
def attention_weights(model: PreTrainedModel, pixel_values: Tensor) -> list[Tensor]:
    """List the weights (1, heads, queries, 1 + HW) of each layer; the one layer of a ResNet is its pooling."""
    if not is_resnet(model):
        return _vit_states(model, pixel_values)[0]
    return [_pool(model, _last_feature_map(model, pixel_values))[1]]


# methods that read the image once
METHODS: dict[str, Callable[[PreTrainedModel, Tensor, Tensor], Tensor]] = {
    "dense": dense,
    "gradient": gradient,
    "rollout": rollout,
}


def _vit_states(model: PreTrainedModel, pixel_values: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the attention weights of each layer (1, heads, L, L) and the embedding (1, D)."""
    tower, weights = model.vision_model, []
    hidden_states = tower.pre_layrnorm(tower.embeddings(pixel_values, interpolate_pos_encoding=True))
    for layer in tower.encoder.layers:
        attention, x = layer.self_attn, layer.layer_norm1(hidden_states)
        projected = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
        attended, of_layer = multi_head_attention(attention, *projected, attend=eager_attention_forward)
        hidden_states = hidden_states + attention.out_proj(attended)
        hidden_states = hidden_states + layer.mlp(layer.layer_norm2(hidden_states))
        weights.append(of_layer)
    return weights, model.visual_projection(tower.post_layernorm(hidden_states[:, 0]))


def _resnet_states(model: PreTrainedModel, pixel_values: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the last feature map (1, C, H, W), alone in a list, and the embedding (1, D)."""
    feature_map = _last_feature_map(model, pixel_values)
    return [feature_map], _pool(model, feature_map)[0]


def _last_feature_map(model: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    return model.vision_model.feature_maps(pixel_values, interpolate_pos_encoding=True)[-1]


def _pool(model: PreTrainedModel, feature_map: Tensor) -> tuple[Tensor, Tensor]:
    """Pool (1, C, H, W) to an embedding (1, D) and weights (1, heads, 1, 1 + HW), whatever attention is configured."""
    pool = model.vision_model.attention_pool
    x = pool.positioned(feature_map).transpose(0, 1)  # (1 + HW, B, C) -> (B, 1 + HW, C)
    query, key, value = pool.q_proj(x[:, :1]), pool.k_proj(x), pool.v_proj(x)
    pooled, weights = multi_head_attention(pool, query, key, value, attend=eager_attention_forward)
    return pool.out_proj(pooled[:, 0]), weights


def _grad_cam(states: list[Tensor], gradients: list[Tensor]) -> Tensor:
    [[feature_map]], [[slope]] = states, gradients  # (C, H, W) each
    return (slope.mean((1, 2), keepdim=True) * feature_map).sum(0).relu()


def _propagated(states: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """Return the relevance (HW,) of each patch for the class token."""
    relevance = torch.eye(states[0].shape[-1], device=states[0].device)
    for [weights], [slope] in zip(states, gradients, strict=True):  # (heads, L, L) each
        relevance = relevance + (weights * slope).relu().mean(0) @ relevance
    return relevance[0, 1:]


def grid(model: PreTrainedModel, pixel_values: Tensor) -> tuple[int, int]:
    """Return the rows and columns of positions in `pixel_values`."""
    stride = stride_of(model.config.vision_config)
    return pixel_values.shape[2] // stride, pixel_values.shape[3] // stride


__all__ = ["METHODS", "attention_weights", "grid", "is_resnet", "score_windows"]
