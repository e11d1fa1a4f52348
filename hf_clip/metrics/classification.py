"""Accuracy, mean per-class recall and mean average precision, under the names that clip_benchmark uses."""

from typing import Any

import torch
from torch import Tensor

from .checks import check_finite
from .outcomes import Outcomes, means


def classification_metrics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Compute acc1, acc5 (from five classes on) and mean_per_class_recall (over the classes that have images).

    Args:
        logits: Scores (images, classes); equal scores rank by class index.
        targets: Class indices (images,).

    Returns:
        Fractions by metric name.

    Raises:
        ValueError: Shapes disagree, a logit is NaN or infinite, or a target is no class.

    Example:
        >>> classification_metrics(torch.eye(2), torch.tensor([0, 1]))
        {'acc1': 1.0, 'mean_per_class_recall': 1.0}
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or not len(targets):
        raise ValueError(
            f"logits are {tuple(logits.shape)}, targets {tuple(targets.shape)}: give (N, C) and (N,), N > 0"
        )
    return means(classification_outcomes(class_ranks(logits, targets), targets, logits.shape[1]))


def class_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """Count the classes before each image's target; of equal scores the first class counts as better."""
    check_finite("logits", logits)
    classes = logits.shape[1]
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(f"targets go from {targets.min()} to {targets.max()}: give indices of the {classes} classes")
    own = logits.gather(1, targets[:, None])
    earlier = torch.arange(classes, device=logits.device) < targets[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def classification_outcomes(ranks: Tensor, targets: Tensor, classes: int) -> dict[str, Outcomes]:
    """Return the outcomes of the metrics, given the place of each image's target among the classes."""
    hits = (ranks == 0).numpy(force=True)
    outcomes = {
        "acc1": Outcomes.of(hits),
        "mean_per_class_recall": Outcomes.of(hits, targets.numpy(force=True)),
    }
    return outcomes | ({"acc5": Outcomes.of((ranks < 5).numpy(force=True))} if classes >= 5 else {})


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Compute the mean of the average precision of every class that has an image, as scikit-learn does.

    Images of equal scores are one place of the ranking, so a model with the same score for all gets the share of
    positives, in whatever order they come.

    Args:
        scores: Scores (images, classes).
        targets: 0 or 1 (images, classes), several classes an image.

    Returns:
        A fraction.

    Raises:
        ValueError: Shapes disagree, a score is NaN or infinite, or no class has an image.

    Example:
        >>> mean_average_precision(torch.eye(2), torch.eye(2))
        1.0
    """
    if scores.ndim != 2 or scores.shape != targets.shape or not targets.any():
        raise ValueError(
            f"scores are {tuple(scores.shape)}, targets {tuple(targets.shape)}: give (N, C) twice, not empty"
        )
    check_finite("scores", scores)
    ordered, order = scores.sort(dim=0, descending=True)
    hits = targets.bool().gather(0, order).double()
    places = torch.arange(len(hits), device=hits.device)[:, None].expand_as(order)
    # the last place of each group of equal scores, at which the precision of all of them is taken
    is_last = torch.cat([ordered[1:] != ordered[:-1], torch.ones_like(ordered[:1], dtype=torch.bool)])
    last = places.where(is_last, torch.full_like(places, len(hits))).flip(0).cummin(0).values.flip(0)
    precisions = hits.cumsum(0).gather(0, last) / (last + 1)
    positives = hits.sum(0)
    precision = (hits * precisions).sum(0)[positives > 0] / positives[positives > 0]
    return precision.mean().item()


def compute_classification_metrics(prediction: Any) -> dict[str, float]:
    """Compute classification metrics of a classifier in transformers' Trainer, as its `compute_metrics`.

    Args:
        prediction: An EvalPrediction with logits (images, classes) and class indices (images,).

    Returns:
        The metrics of `classification_metrics`.

    Raises:
        ValueError: Shapes disagree, or a label is no class.

    Example:
        >>> trainer = Trainer(model, args, eval_dataset=images, compute_metrics=compute_classification_metrics)
    """
    logits = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple | list) else logits
    return classification_metrics(torch.as_tensor(logits).float(), torch.as_tensor(prediction.label_ids).long())


__all__ = [
    "class_ranks",
    "classification_metrics",
    "classification_outcomes",
    "compute_classification_metrics",
    "mean_average_precision",
]
