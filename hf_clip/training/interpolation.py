"""Weight interpolation between a model and its fine-tune (WiSE-FT, Wortsman et al. 2022)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..utils.text import listing


def interpolate(base: nn.Module, tuned: nn.Module, alpha: float = 0.5) -> nn.Module:
    """Average the weights of a model and its fine-tune, which often keeps the accuracy of both.

    Statistics of BatchNorms are averaged like weights; integers, such as counters, are taken from the nearer end.

    Args:
        base: The model before fine-tuning.
        tuned: The model after fine-tuning, with weights of the same names; an adapter is merged first.
        alpha: 0 gives `base`, 1 gives `tuned`, both bit for bit.

    Returns:
        `tuned` itself, or the base model of the adapter, with the averaged weights.

    Raises:
        ValueError: `alpha` is not between 0 and 1, or the weights are not the same by name and shape.

    Example:
        >>> model = interpolate(HFCLIPModel.from_pretrained("clip-rn50"), trainer.model, alpha=0.5)
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: give a share of the fine-tune from 0 to 1")
    if hasattr(tuned, "merge_and_unload"):
        tuned = tuned.merge_and_unload()
    tuned.load_state_dict(interpolated(base.state_dict(), tuned.state_dict(), alpha))
    return tuned


def interpolated(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Average two state dicts, in float32 or more, and return the dtypes of `tuned`."""
    different = sorted(base.keys() ^ tuned.keys()) or [
        name for name, tensor in base.items() if tensor.shape != tuned[name].shape
    ]
    if different:
        raise ValueError(
            f"the models differ in {len(different)} weights ({listing(different, 3)}): give a model and its "
            "own fine-tune"
        )
    return {name: _between(tensor, tuned[name], alpha) for name, tensor in base.items()}


def _between(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    base = base.to(tuned.device)
    if alpha in (0, 1) or not tuned.is_floating_point():
        return (tuned if alpha >= 0.5 else base).to(tuned.dtype).clone()
    wide = torch.promote_types(tuned.dtype, torch.float32)
    return ((1 - alpha) * base.to(wide) + alpha * tuned.to(wide)).to(tuned.dtype)


__all__ = ["interpolate", "interpolated"]
