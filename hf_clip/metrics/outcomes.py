"""Per-image outcomes, from which metrics and their confidence intervals are computed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
CHUNK_NUMBERS = 10_000_000
FIELDS = ("hits", "trials", "groups")


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of one metric, image by image.

    The metric is the mean over groups of hits divided by trials, both summed over the images of a group.

    Args:
        hits: (images,) float64.
        trials: (images,) float64; 1 for classification, the number of captions for retrieval by text.
        groups: (images,) int64; the classes for mean per-class recall, all zero for a plain mean.
    """

    hits: np.ndarray
    trials: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, hits: np.ndarray, groups: np.ndarray | None = None, trials: np.ndarray | None = None) -> "Outcomes":
        """Make outcomes of hits: one trial per image and one group, unless `trials` and `groups` are given."""
        hits = np.asarray(hits, np.float64)
        trials = np.ones(len(hits)) if trials is None else np.asarray(trials, np.float64)
        groups = np.zeros(len(hits), np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
        return cls(hits, trials, groups)

    def to_json(self) -> dict[str, str]:
        """Return each array as one text, a tenth of the lines that a list takes in indented JSON."""
        return {name: " ".join(f"{value:.17g}" for value in getattr(self, name)) for name in FIELDS}

    @classmethod
    def from_json(cls, content: Mapping[str, str]) -> "Outcomes":
        """Make outcomes of the result of `to_json`."""
        hits, trials, groups = (np.array(content[name].split(), np.float64) for name in FIELDS)
        if not len(hits) == len(trials) == len(groups):
            raise ValueError("outcomes of different lengths")
        return cls(hits, trials, groups.astype(np.int64))

    @property
    def mean(self) -> float:
        """Return the metric."""
        return float(self._means(np.ones((1, len(self.hits))))[0])

    @property
    def is_proportion(self) -> bool:
        """Return True if each image is one trial of one group, a hit or none, so that the metric is a proportion."""
        return bool((self.trials == 1).all() and (self.groups == 0).all() and np.isin(self.hits, (0, 1)).all())

    def _means(self, weights: np.ndarray) -> np.ndarray:
        """Compute the metric of resampled data; `weights` (samples, images) count how often each image is drawn."""
        hits, trials = ((weights * values)[:, self._order] for values in (self.hits, self.trials))
        hits, trials = (np.add.reduceat(values, self._starts, axis=1) for values in (hits, trials))
        shares = np.divide(hits, trials, out=np.zeros_like(hits), where=trials > 0)
        return shares.sum(1) / (trials > 0).sum(1)  # a group that a sample lacks does not count

    @property
    def _order(self) -> np.ndarray:
        return np.argsort(self.groups, kind="stable")

    @property
    def _starts(self) -> np.ndarray:
        return np.unique(self.groups[self._order], return_index=True)[1]


def proportion_interval(share: float, trials: float) -> tuple[float, float]:
    """Compute the 95 % confidence interval of one proportion, by Wilson's score.

    It keeps its coverage at few images and at shares of 0 and 1, where a bootstrap has no width.

    Args:
        share: The share of hits.
        trials: The number of trials.

    Returns:
        The low and the high end.

    Raises:
        ValueError: There are no trials.

    Example:
        >>> proportion_interval(1.0, 10)
        (0.7224672001371109, 1.0)
    """
    if trials <= 0:
        raise ValueError(f"trials is {trials}: give at least one")
    z2 = Z * Z
    center = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials)) / (1 + z2 / trials)
    return max(0.0, center - half), min(1.0, center + half)


def paired_difference(first: Outcomes, second: Outcomes) -> tuple[float, float, float]:
    """Compute the difference of two proportions on the same images with its 95 % confidence interval.

    The interval is Newcombe's for paired proportions (1998, method 10), which is made of two Wilson intervals.

    Args:
        first: Hits of one model, one trial for each image.
        second: Hits of another model on the same images in the same order.

    Returns:
        The metric of `second` minus that of `first`, and the ends of the interval.

    Raises:
        ValueError: The models saw different numbers of images.

    Example:
        >>> paired_difference(Outcomes.of([1, 0, 1, 0]), Outcomes.of([1, 1, 1, 0]))
        (0.25, -0.31955725151330316, 0.6552866603491048)
    """
    _check_same_images(first, second)
    one, two, images = first.hits, second.hits, len(first.hits)
    shares = two.mean(), one.mean()
    (low2, high2), (low1, high1) = (proportion_interval(share, images) for share in shares)
    both, neither = (one * two).sum(), ((1 - one) * (1 - two)).sum()
    only_one, only_two = (one * (1 - two)).sum(), (two * (1 - one)).sum()
    sides = (both + only_two) * (neither + only_one) * (both + only_one) * (neither + only_two)
    phi = 0.0
    if sides > 0:
        product = both * neither - only_one * only_two
        # Newcombe's continuity correction of positive correlations
        phi = (max(product - images / 2, 0.0) if product > 0 else product) / math.sqrt(sides)
    down = _distance(shares[0] - low2, high1 - shares[1], phi)
    up = _distance(high2 - shares[0], shares[1] - low1, phi)
    difference = shares[0] - shares[1]
    return float(difference), float(difference - down), float(difference + up)


def _distance(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _check_same_images(first: Outcomes, second: Outcomes) -> None:
    if len(first.hits) != len(second.hits):
        raise ValueError(
            f"the models saw {len(first.hits)} and {len(second.hits)} images: evaluate both on the same data"
        )


def means(outcomes: Mapping[str, Outcomes]) -> dict[str, float]:
    """Return the metric of each of several outcomes, by name."""
    return {name: outcome.mean for name, outcome in outcomes.items()}


def bootstrap_difference(
    first: Outcomes, second: Outcomes, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Estimate the difference of two models on the same images, by resampling the images.

    Args:
        first: Outcomes of one model.
        second: Outcomes of another model on the same images in the same order.
        draws: Number of samples, each of as many images as there are, drawn with replacement and shared by both models.
        seed: Seed of the samples.

    Returns:
        The metric of `second` minus that of `first`, and the ends of the difference's 95 % confidence interval.

    Raises:
        ValueError: The models saw different numbers of images.

    Example:
        >>> hits = Outcomes.of([1, 0, 1, 1])
        >>> bootstrap_difference(hits, hits)
        (0.0, 0.0, 0.0)
    """
    _check_same_images(first, second)
    images = len(first.hits)
    rng, differences = np.random.default_rng(seed), []
    chunk = max(1, min(draws, CHUNK_NUMBERS // images))
    for start in range(0, draws, chunk):
        weights = rng.multinomial(images, np.full(images, 1 / images), min(chunk, draws - start)).astype(np.float64)
        differences.append(second._means(weights) - first._means(weights))
    low, high = np.quantile(np.concatenate(differences), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return second.mean - first.mean, float(low), float(high)


__all__ = ["Outcomes", "bootstrap_difference", "means", "paired_difference", "proportion_interval"]
