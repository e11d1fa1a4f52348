"""How well scores are calibrated: expected calibration error and reliability diagrams (Guo et al., 2017)."""

from typing import Any

import torch
from torch import Tensor

from .checks import check_finite
from .outcomes import proportion_interval

BINS = 15


def expected_calibration_error(scores: Tensor, hits: Tensor, *, bins: int = BINS) -> float:
    """Compute the mean distance between scores and shares of hits, over bins of equal width, weighted by their size.

    The error of few scores is above zero even where they are calibrated, because shares of few are far from their mean.

    Args:
        scores: Probabilities (N,).
        hits: True where what the probability was given for is so (N,).
        bins: The number of bins between 0 and 1.

    Returns:
        A fraction.

    Raises:
        ValueError: Shapes disagree, there are no scores, or a score is not between 0 and 1.

    Example:
        >>> expected_calibration_error(torch.tensor([0.5, 0.5]), torch.tensor([True, False]))
        0.0
    """
    parts = reliability(scores, hits, bins=bins)
    return sum(part["count"] * abs(part["score"] - part["share"]) for part in parts) / len(scores)


def reliability(scores: Tensor, hits: Tensor, *, bins: int = BINS) -> list[dict[str, Any]]:
    """Compare scores with shares of hits, bin by bin, as a reliability diagram shows them.

    Args:
        scores: Probabilities (N,).
        hits: True where what the probability was given for is so (N,).
        bins: The number of bins of equal width between 0 and 1.

    Returns:
        For each bin that has scores: its `count`, mean `score`, `share` of hits, and the ends `low` and `high` of the
        share's 95 % interval.

    Raises:
        ValueError: Shapes disagree, there are no scores, or a score is not between 0 and 1.

    Example:
        >>> [part] = reliability(torch.tensor([0.5, 0.5]), torch.tensor([True, False]))
        >>> part["count"], part["score"], part["share"]
        (2, 0.5, 0.5)
    """
    if scores.ndim != 1 or scores.shape != hits.shape or not len(scores):
        raise ValueError(f"scores are {tuple(scores.shape)}, hits {tuple(hits.shape)}: give (N,) twice, N > 0")
    check_finite("scores", scores)
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"scores go from {scores.min():g} to {scores.max():g}: give probabilities")
    places = (scores.double() * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(places, minlength=bins)
    sums, rights = (torch.bincount(places, values.double(), minlength=bins) for values in (scores, hits))
    parts = []
    for count, total, right in zip(counts.tolist(), sums.tolist(), rights.tolist(), strict=True):
        if count:
            low, high = proportion_interval(right / count, count)
            parts.append({"count": count, "score": total / count, "share": right / count, "low": low, "high": high})
    return parts


__all__ = ["expected_calibration_error", "reliability"]
