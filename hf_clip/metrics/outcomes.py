"""Per-image outcomes, from which metrics and their confidence intervals are computed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
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
    images = len(first.hits)
    if images != len(second.hits):
        raise ValueError(f"the models saw {images} and {len(second.hits)} images: evaluate both on the same data")
    rng, differences = np.random.default_rng(seed), []
    chunk = max(1, min(draws, CHUNK_NUMBERS // images))
    for start in range(0, draws, chunk):
        weights = rng.multinomial(images, np.full(images, 1 / images), min(chunk, draws - start)).astype(np.float64)
        differences.append(second._means(weights) - first._means(weights))
    low, high = np.quantile(np.concatenate(differences), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return second.mean - first.mean, float(low), float(high)


__all__ = ["Outcomes", "bootstrap_difference", "means"]
