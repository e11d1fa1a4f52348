"""Sharding over processes with `torch.distributed.fsdp.fully_shard` (FSDP2)."""

from typing import Any

import torch
from torch import nn

# not get_image_features and get_text_features, which forward calls: FSDP drops the weights behind the inner call
ENCODERS = ("encode_image", "encode_text")


def prepare_fsdp(model: nn.Module) -> nn.Module:
    """Prepare a CLIP for `fully_shard`, which cannot shard the scalar `logit_scale`.

    `logit_scale` becomes a vector of one number, and a scalar again in state dicts. Shard the model with
    `reshard_after_forward=False`, as the loss reads `logit_scale` after forward; blocks may be sharded on their own
    before. `fully_shard` gathers weights in `forward` alone: to encode images or texts on their own, call
    `register_encoders` on the sharded model.

    Args:
        model: A CLIP with both towers, before `fully_shard`.

    Returns:
        The same model.

    Raises:
        ValueError: The model has no `logit_scale`.

    Example:
        >>> model = register_encoders(fully_shard(prepare_fsdp(model), reshard_after_forward=False))
    """
    if not hasattr(model, "logit_scale"):
        raise ValueError(f"{type(model).__name__} has no logit_scale: give a CLIP with both towers")
    scale = model.logit_scale
    model.logit_scale = nn.Parameter(scale.detach().reshape(1), requires_grad=scale.requires_grad)
    model.register_state_dict_post_hook(_as_scalar)
    model.register_load_state_dict_pre_hook(_as_vector)
    return model


def register_encoders(model: nn.Module) -> nn.Module:
    """Make `encode_image` and `encode_text` of a sharded CLIP gather its weights, as `forward` does."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    for name in ENCODERS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    return model


def _as_scalar(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    key = f"{prefix}logit_scale"
    scale = state_dict[key]
    if hasattr(scale, "full_tensor"):  # a shard: a scalar lies on every process in whole
        scale = scale.full_tensor()
    state_dict[key] = scale.reshape(())


def _as_vector(module: nn.Module, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
    key = f"{prefix}logit_scale"
    if key in state_dict and isinstance(state_dict[key], torch.Tensor):
        state_dict[key] = state_dict[key].reshape(1)


__all__ = ["prepare_fsdp", "register_encoders"]
