"""Thresholds on scores that reach a wanted precision or recall, not only on the images they were chosen on.

A threshold whose precision is just the wanted one on known images falls short on every second set of new ones. These
are chosen so that the wanted value holds for new images of the same kind with CONFIDENCE, by tests of the exact
binomial distribution; where the images are too few for that, the result says so.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_finite
from .outcomes import CONFIDENCE, proportion_interval

# thresholds tried, from high to low until one fails, beginning at each of several with a part of the allowed error
TRIED, STARTS = 24, 3


@dataclass(frozen=True)
class Threshold:
    """A threshold, with its precision or recall on the images that it was chosen on.

    Args:
        value: Scores of at least this are taken.
        share: The precision or recall on these images.
        low: The low end of the share's 95 % interval.
        high: The high end.
        count: The number of images that the share is of: of those taken for precision, of positives for recall.
        assured: True if the wanted share holds for new images with 95 % confidence.
    """

    value: float
    share: float
    low: float
    high: float
    count: int
    assured: bool


def threshold_for_precision(scores: Tensor, hits: Tensor, wanted: float) -> Threshold:
    """Choose the lowest threshold with a precision of at least `wanted`.

    TRIED thresholds, at equal ratios of the numbers that are taken, are tested for a precision below `wanted` in turn
    (learn then test, Angelopoulos et al., 2021: fixed sequences with several starts).

    Args:
        scores: Scores (N,).
        hits: True where taking is right (N,).
        wanted: A precision between 0 and 1.

    Returns:
        The threshold. If none is assured, the one that takes most of those that reach `wanted` on these images.

    Raises:
        ValueError: `wanted` is out of range, a shape or score is wrong, or no threshold reaches `wanted`.

    Example:
        >>> threshold_for_precision(torch.arange(200) / 200, torch.arange(200) >= 100, 0.9).assured
        True
    """
    _check(scores, hits, wanted)
    ordered, order = scores.double().sort(descending=True)
    right = hits[order].double().cumsum(0)
    counts = torch.arange(1, len(scores) + 1)
    # the last of equal scores: a threshold takes all of them
    places = (ordered.diff() != 0).nonzero().flatten()
    places = torch.cat([places, places.new_tensor([len(scores) - 1])])
    error = (1 - CONFIDENCE) / STARTS
    least = images_needed(wanted, error)
    most = min(len(scores), math.floor(right[-1].item() / wanted))  # with more, too few of them are right
    if most >= least:
        steps = torch.logspace(math.log10(least), math.log10(most), TRIED).round().long() - 1
        tried = places[torch.searchsorted(places, steps).clamp(max=len(places) - 1)].tolist()
        passed: list[int] = []
        for start in range(0, TRIED, TRIED // STARTS):
            in_turn = itertools.takewhile(lambda n: _tail(n + 1, right[n].item(), wanted) <= error, tried[start:])
            passed.extend(in_turn)
        if passed:
            return _threshold(ordered, right, max(passed), assured=True)
    reached = places[right[places] >= wanted * counts[places]]
    if not len(reached):
        best = (right[places] / counts[places]).max().item()
        raise ValueError(
            f"no threshold reaches a precision of {wanted:g} on these images, the best is {best:.3f}: ask for less, or "
            "for better labels and templates"
        )
    return _threshold(ordered, right, int(reached[-1]), assured=False)


def threshold_for_recall(scores: Tensor, wanted: float) -> Threshold:
    """Choose the highest threshold that at least the share `wanted` of positives reaches.

    The order statistic is that of a one-sided tolerance limit (Wilks, 1941).

    Args:
        scores: The scores of the positives (N,); minus infinity for one that no threshold takes.
        wanted: A recall between 0 and 1.

    Returns:
        The threshold. If the positives are too few to assure `wanted`, the one that reaches it on them.

    Raises:
        ValueError: `wanted` is out of range, there are no scores, or too many cannot be taken.

    Example:
        >>> threshold_for_recall(torch.arange(100) / 100, 0.9).value
        0.04
    """
    _check(scores.clamp(min=-1e30), torch.ones_like(scores), wanted)
    ordered = scores.double().sort().values
    # the most positives below the threshold with which the wanted recall is assured
    below = int((_log_binomial(len(scores), 1 - wanted).exp().cumsum(0) <= 1 - CONFIDENCE).sum())
    assured = below > 0 and bool(ordered[below - 1] > -math.inf)
    place = below - 1 if assured else math.floor((1 - wanted) * len(scores) + 1e-9)
    value = ordered[place].item()
    if value == -math.inf:
        reach = (scores > -math.inf).double().mean().item()
        raise ValueError(
            f"no threshold reaches a recall of {wanted:g} on these images, without any it is {reach:.3f}: ask for less"
        )
    share = (ordered >= value).double().mean().item()
    return Threshold(value, share, *proportion_interval(share, len(scores)), len(scores), assured)


def images_needed(wanted: float, error: float = 1 - CONFIDENCE) -> int:
    """Count the images that assure the share `wanted` if all are right."""
    return math.ceil(math.log(error) / math.log(wanted))


def _threshold(ordered: Tensor, right: Tensor, place: int, assured: bool) -> Threshold:
    count = place + 1
    share = right[place].item() / count
    return Threshold(ordered[place].item(), share, *proportion_interval(share, count), count, assured)


def _tail(count: int, hits: float, share: float) -> float:
    """Return the probability of `hits` or more of `count` trials that hit with probability `share`."""
    return min(1.0, _log_binomial(count, share)[int(hits) :].logsumexp(0).exp().item())


def _log_binomial(count: int, share: float) -> Tensor:
    """Return the logarithms of the probabilities of 0 to `count` hits (count + 1,), float64."""
    k, n = torch.arange(count + 1, dtype=torch.double), torch.tensor(float(count), dtype=torch.double)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return ways + k * math.log(share) + (n - k) * math.log1p(-share)


def _check(scores: Tensor, hits: Tensor, wanted: float) -> None:
    if not 0 < wanted < 1:
        raise ValueError(f"the wanted share is {wanted:g}: give one between 0 and 1, such as 0.9")
    if scores.ndim != 1 or scores.shape != hits.shape or not len(scores):
        raise ValueError(f"scores are {tuple(scores.shape)}, hits {tuple(hits.shape)}: give (N,) twice, N > 0")
    check_finite("scores", scores)


__all__ = ["Threshold", "images_needed", "threshold_for_precision", "threshold_for_recall"]
