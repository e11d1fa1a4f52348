"""Fit heads to embeddings, and choose among them by pictures that are held out."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.rows import DataError
from ..metrics.outcomes import Outcomes
from ..utils.text import listing
from .heads import FEW_SHOT_HEADS, Head
from .selection import HELD_OUT_PARTS, Blend, HeldOut, crossed_hits, fold_numbers, held_out_scores, ratio_of_spreads

AUTO = "auto"
CHOSEN, ZERO_SHOT, LINEAR_PROBE = "few_shot", "zero_shot", "linear_probe"
# where nothing can be held out: as much of the pictures as of the texts, and the logits as they are
EVEN_WEIGHT, AS_IT_IS = 0.5, 1.0
# embeddings that differ by less are equal up to rounding
SAME_EMBEDDING = 1e-5


class Fitted(NamedTuple):
    """A head, its blend with the texts, and how all heads did on pictures that were held out.

    Args:
        name: The head, one of FEW_SHOT_HEADS.
        head: The head, fitted to all pictures.
        blend: Its weight beside the texts.
        blends: The blend that each head would get; empty where nothing could be held out.
        hits: Hits of the held-out pictures: of the choice among the heads, of the texts alone, of the linear probe, and
            of each head.
    """

    name: str
    head: Head
    blend: Blend
    blends: dict[str, Blend]
    hits: dict[str, Outcomes]


def fit_head(
    texts: Tensor, embeds: Tensor, targets: Tensor, head: str = AUTO, folds: int = HELD_OUT_PARTS, seed: int = 0
) -> Fitted:
    """Fit heads to embeddings, and choose one and its weight beside the texts by the log loss of held-out pictures.

    Args:
        texts: The logits of the texts (N, classes).
        embeds: Embeddings (N, dim) of length 1.
        targets: Class indices (N,).
        head: One of FEW_SHOT_HEADS, or "auto" for the one of the least loss.
        folds: The number of parts that are held out in turn.
        seed: Seed of the parts.
    """
    classes = texts.shape[1]
    names = list(FEW_SHOT_HEADS) if head == AUTO else [head]
    numbers = fold_numbers(targets, folds, seed)
    held = np.flatnonzero(numbers >= 0)
    if not len(held):
        kind = FEW_SHOT_HEADS[names[0]]
        fitted = kind.fit(embeds, targets, classes, kind.default)
        ratio = ratio_of_spreads(texts, fitted(embeds))
        return Fitted(names[0], fitted, Blend(kind.default, EVEN_WEIGHT, ratio, AS_IT_IS), {}, {})
    found: dict[str, HeldOut] = {}
    for name in dict.fromkeys([*names, "logistic"]):
        scores = _scores_by_setting(name, embeds, targets, classes, numbers)
        found[name] = HeldOut.of(texts[held], scores, targets[held], numbers[held])
    chosen = min(names, key=lambda name: found[name].best()[1])
    hits = {
        CHOSEN: crossed_hits([found[name] for name in names]),
        ZERO_SHOT: (texts[held].argmax(1) == targets[held]).numpy(),
        LINEAR_PROBE: crossed_hits([found["logistic"].pictures_alone()]),
        **{name: crossed_hits([found[name]]) for name in found},
    }
    blends = {name: result.blend() for name, result in found.items()}
    fitted = FEW_SHOT_HEADS[chosen].fit(embeds, targets, classes, blends[chosen].setting)
    outcomes = {name: Outcomes.of(values) for name, values in hits.items()}
    return Fitted(chosen, fitted, blends[chosen], blends, outcomes)


def held_out_probabilities(
    texts: Tensor, embeds: Tensor, targets: Tensor, folds: int = HELD_OUT_PARTS, seed: int = 0
) -> tuple[np.ndarray, Tensor]:
    """Compute the probabilities of classes for pictures that are held out, by logistic regression beside the texts.

    The regularization, the weight of the texts and the sharpness are those of the least log loss over all folds.

    Args:
        texts: The logits of the texts (N, classes).
        embeds: Embeddings (N, dim) of length 1.
        targets: Class indices (N,).
        folds: The number of parts that are held out in turn.
        seed: Seed of the parts.

    Returns:
        The places (M,) of the pictures that were held out, all but the only ones of their classes, and their
        probabilities (M, classes).
    """
    numbers = fold_numbers(targets, folds, seed)
    held = np.flatnonzero(numbers >= 0)
    if not len(held):
        return held, texts[:0]
    scores = _scores_by_setting("logistic", embeds, targets, texts.shape[1], numbers)
    blend = HeldOut.of(texts[held], scores, targets[held], numbers[held]).blend()
    logits = blend.of_texts * texts[held] + blend.of_pictures * scores[blend.setting]
    return held, logits.softmax(1)


def _scores_by_setting(
    name: str, embeds: Tensor, targets: Tensor, classes: int, folds: np.ndarray
) -> dict[float, Tensor]:
    kind = FEW_SHOT_HEADS[name]

    def fit(rows: np.ndarray, setting: float) -> Head:
        return kind.fit(embeds[rows], targets[rows], classes, setting)

    return {setting: held_out_scores(partial(fit, setting=setting), embeds, folds) for setting in kind.settings}


def check_head(head: str) -> None:
    """Raise ValueError unless there is such a head."""
    if head not in (AUTO, *FEW_SHOT_HEADS):
        raise ValueError(f"head is {head!r}: choose {AUTO}, {', '.join(FEW_SHOT_HEADS)}")


def check_classes(name: str, labels: Sequence[str], targets: Tensor) -> None:
    """Raise DataError unless there are two classes, each with a picture."""
    if len(labels) < 2:
        raise DataError(f"{name} has one class, {labels[0]}: a classifier chooses among two or more")
    counts = torch.bincount(targets, minlength=len(labels))
    if without := [label for label, count in zip(labels, counts.tolist(), strict=True) if not count]:
        raise DataError(f"{name} has no picture of {listing(without, 3)}: give one, or leave the class out")


def check_spread(name: str, embeds: Tensor) -> None:
    """Raise ValueError if all embeddings are equal, up to rounding."""
    if (embeds - embeds[0]).abs().max() < SAME_EMBEDDING:
        raise ValueError(f"the {len(embeds)} embeddings of {name} are all equal: no head can tell its classes apart")


__all__ = [
    "AUTO",
    "CHOSEN",
    "LINEAR_PROBE",
    "ZERO_SHOT",
    "Fitted",
    "check_classes",
    "check_head",
    "check_spread",
    "fit_head",
    "held_out_probabilities",
]
