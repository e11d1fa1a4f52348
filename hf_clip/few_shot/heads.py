"""Heads on the embeddings of a few pictures: prototypes, ridge and logistic regression, the cache of Tip-Adapter."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..evaluation.probe import fit
from ..model.modeling_hf_clip_base import normalize as unit_length


class LinearHead(NamedTuple):
    """Score classes by a linear function of embeddings.

    Args:
        weight: (classes, dim) float32.
        bias: (classes,) float32.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, embeds: Tensor) -> Tensor:
        """Return scores (B, classes) of embeddings (B, dim)."""
        return torch.addmm(self.bias, embeds, self.weight.T)


class CacheHead(NamedTuple):
    """Score classes by the likeness to cached pictures (Tip-Adapter, arXiv:2111.03930, equations 4 and 5).

    Args:
        keys: Embeddings (N, dim) of length 1.
        values: What each picture adds to each class (N, classes); 1 for its own.
        sharpness: How fast a picture's part falls with its distance, the paper's beta.
    """

    keys: Tensor
    values: Tensor
    sharpness: float

    def __call__(self, embeds: Tensor) -> Tensor:
        """Return scores (B, classes) of embeddings (B, dim) of length 1."""
        return (self.sharpness * (embeds @ self.keys.T - 1)).exp() @ self.values


Head = LinearHead | CacheHead


def prototypes(embeds: Tensor, targets: Tensor, classes: int, setting: float) -> LinearHead:
    """Return the mean embedding of each class, at length 1; `setting` is not used."""
    sums = torch.zeros(classes, embeds.shape[1]).index_add_(0, targets, embeds)
    return LinearHead(unit_length(sums), torch.zeros(classes))


def ridge(embeds: Tensor, targets: Tensor, classes: int, setting: float) -> LinearHead:
    """Fit scikit-learn's ridge regression of 0 and 1 for each class; `setting` is its strength."""
    from sklearn.linear_model import Ridge

    wanted = torch.nn.functional.one_hot(targets, classes).float()
    fitted = Ridge(alpha=setting).fit(embeds.numpy(), wanted.numpy())
    return LinearHead(torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_))


def logistic(embeds: Tensor, targets: Tensor, classes: int, setting: float) -> LinearHead:
    """Fit the linear probe's logistic regression; `setting` is its C."""
    fitted = fit(embeds.numpy(), targets.numpy(), setting)
    weight, bias = np.float32(fitted.coef_), np.float32(fitted.intercept_)
    if classes == 2:  # scikit-learn has the difference of both
        weight, bias = (np.concatenate([-values / 2, values / 2]) for values in (weight, bias))
    return LinearHead(torch.from_numpy(weight), torch.from_numpy(bias))


def cache(embeds: Tensor, targets: Tensor, classes: int, setting: float) -> CacheHead:
    """Keep all pictures as they are; `setting` is the sharpness."""
    return CacheHead(embeds, torch.nn.functional.one_hot(targets, classes).float(), setting)


class HeadKind(NamedTuple):
    """A way to fit a head, and the settings that are tried on held-out pictures; the middle one is the default."""

    fit: Callable[[Tensor, Tensor, int, float], Head]
    settings: tuple[float, ...]

    @property
    def default(self) -> float:
        """Return the setting that is used where nothing can be held out."""
        return self.settings[len(self.settings) // 2]


FEW_SHOT_HEADS = {
    "prototypes": HeadKind(prototypes, (1.0,)),
    "ridge": HeadKind(ridge, (0.1, 1.0, 10.0)),
    "logistic": HeadKind(logistic, (1.0, 10.0, 100.0)),
    # 5.5 is the paper's own
    "cache": HeadKind(cache, (1.0, 2.75, 5.5, 11.0, 22.0)),
}

__all__ = ["FEW_SHOT_HEADS", "CacheHead", "Head", "HeadKind", "LinearHead", "cache", "logistic", "prototypes", "ridge"]
