"""The choice of a head's setting and of its weight beside the texts, on pictures that the head was not fitted to."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .heads import Head

# weights of the pictures beside the texts, and factors of all logits
PICTURE_WEIGHTS = tuple(step / 10 for step in range(11))
FACTORS = tuple(2.0**power for power in range(-3, 4))
HELD_OUT_PARTS = 5


class Blend(NamedTuple):
    """A setting of a head, and the factors that join its scores to those of the texts.

    Args:
        setting: The head's own setting.
        weight: 0 for texts alone, 1 for pictures alone.
        ratio: The spread of the texts' logits over that of the head's scores, so that a weight means the same for all.
        factor: The factor of all logits, by which their softmax is a probability.
    """

    setting: float
    weight: float
    ratio: float
    factor: float

    @property
    def of_texts(self) -> float:
        """Return the factor of the texts' logits."""
        return self.factor * (1 - self.weight)

    @property
    def of_pictures(self) -> float:
        """Return the factor of the head's scores."""
        return self.factor * self.weight * self.ratio


def fold_numbers(targets: Tensor, folds: int, seed: int) -> np.ndarray:
    """Return the fold (N,) that each picture is held out in, in the shares of the classes; -1 if it never is.

    The only picture of a class is fitted in every fold: without it the class would be unknown.
    """
    from sklearn.model_selection import StratifiedKFold

    labels = targets.numpy()
    counts = np.bincount(labels)
    several = np.flatnonzero(counts[labels] > 1)
    numbers = np.full(len(labels), -1)
    if len(np.unique(labels[several])) > 1:
        splits = StratifiedKFold(min(folds, counts.max()), shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            for number, (_, held) in enumerate(splits.split(several, labels[several])):
                numbers[several[held]] = number
    return numbers


def held_out_scores(fit: Callable[[np.ndarray], Head], embeds: Tensor, folds: np.ndarray) -> Tensor:
    """Score each picture that is held out by the head that was fitted without its fold.

    Args:
        fit: Fits a head to the pictures at some places.
        embeds: All pictures (N, dim).
        folds: The fold of each picture, as `fold_numbers` gives them.

    Returns:
        Scores (held out, classes), in the order of pictures.
    """
    scores: dict[int, Tensor] = {}
    for number in range(folds.max() + 1):
        held = np.flatnonzero(folds == number)
        found = fit(np.flatnonzero(folds != number))(embeds[held])
        scores |= dict(zip(held.tolist(), found, strict=True))
    return torch.stack([scores[place] for place in sorted(scores)])


def ratio_of_spreads(texts: Tensor, scores: Tensor) -> float:
    """Return the factor by which scores (N, classes) spread as widely around each picture's mean as texts' logits do.

    Logits that are equal for all classes count as if they had a standard deviation of 1.
    """
    texts_spread, own = ((each - each.mean(1, keepdim=True)).square().mean().sqrt().item() for each in (texts, scores))
    return (texts_spread or 1.0) / (own or 1.0)


@dataclass(frozen=True)
class HeldOut:
    """Results of each blend of a head on pictures that are held out.

    Args:
        settings: The head's settings.
        weights: The weights of pictures.
        ratios: The ratio for each setting.
        losses: (settings, weights, factors, N) log losses.
        hits: (settings, weights, N) True where the picture's own class scores highest.
        folds: (N,).
    """

    settings: Sequence[float]
    weights: Sequence[float]
    ratios: Sequence[float]
    losses: np.ndarray
    hits: np.ndarray
    folds: np.ndarray

    @classmethod
    def of(
        cls,
        texts: Tensor,
        scores: dict[float, Tensor],
        targets: Tensor,
        folds: np.ndarray,
        weights: Sequence[float] = PICTURE_WEIGHTS,
    ) -> "HeldOut":
        """Measure all blends of the texts' logits (N, classes) with a head's held-out scores by its setting."""
        # smoothed as Platt's (1999): no factor is best without end where all pictures are right
        right = 1 - 1 / (len(targets) + 2)
        losses = np.empty((len(scores), len(weights), len(FACTORS), len(targets)), np.float32)
        hits = np.empty((len(scores), len(weights), len(targets)), bool)
        ratios = [ratio_of_spreads(texts, found) for found in scores.values()]
        for place, (ratio, found) in enumerate(zip(ratios, scores.values(), strict=True)):
            for number, weight in enumerate(weights):
                logits = (1 - weight) * texts + weight * ratio * found
                logits = logits - logits.mean(1, keepdim=True)
                own = right * logits.gather(1, targets[:, None])[:, 0]
                hits[place, number] = (logits.argmax(1) == targets).numpy()
                for step, factor in enumerate(FACTORS):
                    losses[place, number, step] = ((factor * logits).logsumexp(1) - factor * own).numpy()
        return cls(list(scores), weights, ratios, losses, hits, folds)

    def best(self, without: int | None = None) -> tuple[tuple[int, int, int], float]:
        """Find the blend of the least loss, and its loss summed over pictures; of equal ones that of more text.

        Args:
            without: A fold whose pictures do not count.
        """
        counted = self.losses if without is None else self.losses[..., self.folds != without]
        sums = counted.sum(-1, dtype=np.float64)
        setting, weight, factor = map(int, np.unravel_index(sums.argmin(), sums.shape))
        return (setting, weight, factor), float(sums.min())

    def blend(self) -> Blend:
        """Return the best blend."""
        (setting, weight, factor), _ = self.best()
        return Blend(self.settings[setting], self.weights[weight], self.ratios[setting], FACTORS[factor])

    def pictures_alone(self) -> "HeldOut":
        """Return the same without any text."""
        return replace(self, weights=self.weights[-1:], losses=self.losses[:, -1:], hits=self.hits[:, -1:])


def crossed_hits(heads: Sequence[HeldOut]) -> np.ndarray:
    """Return the hits (N,) of pictures whose head and blend are the best on the other folds.

    Neither the head nor its blend has seen the picture, so the share of hits is what new pictures can expect.
    """
    folds = heads[0].folds
    hits = np.empty(len(folds), bool)
    for number in np.unique(folds):
        choices = [head.best(without=number) for head in heads]
        chosen = min(range(len(heads)), key=lambda place: choices[place][1])
        (setting, weight, _), _ = choices[chosen]
        hits[folds == number] = heads[chosen].hits[setting, weight, folds == number]
    return hits


__all__ = ["HELD_OUT_PARTS", "Blend", "HeldOut", "crossed_hits", "fold_numbers", "held_out_scores", "ratio_of_spreads"]
