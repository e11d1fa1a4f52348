"""Calibration of a head by labeled images: temperature, offsets, thresholds, and the limits of all of them.

The likelihood of the labels is maximized under weak priors, so that few images change little and images that are all
told apart do not make scores infinitely sure: normal ones of deviation 1 on the logarithm of the temperature, the
weight of the background, and the offset of each label. Whether labels get offsets of their own is decided by their
likelihood on held-out folds, which also give the error after calibration.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, nll_loss

from ..metrics.calibration import expected_calibration_error, reliability
from ..metrics.thresholds import Threshold, images_needed, threshold_for_precision, threshold_for_recall
from ..utils.text import listing
from .head import NONE_LABEL, Calibration, ClassifierHead, Mode, probabilities

FOLDS = 5
LEAST_OF_A_LABEL = 10  # images of a label before it gets an offset of its own
LEAST_FOR_FOLDS = 20
LITTLE = 0.25  # times that a background counts where its texts tell little
NOISY = 100  # an expected calibration error of fewer images is mostly noise
FREE = 10.0  # deviation of the prior of what all labels share
SMALLEST = 1e-12


def calibrate_head(
    head: ClassifierHead,
    evidence: Tensor,
    targets: Tensor,
    *,
    precision: float | None = None,
    recall: float | None = None,
) -> ClassifierHead:
    """Return the head calibrated by labeled images.

    Args:
        head: The head; a calibration that it has is replaced.
        evidence: What the head makes scores of, for each image (images, columns), float32.
        targets: True where an image shows a label (images, labels); no True at all for none of the labels.
        precision: Choose thresholds for this share of right labels among those given.
        recall: Choose thresholds for this share of labels that are found; give only one of the two.

    Returns:
        A head with a calibration, whose `report` holds: `images`; `examples`, their number for each label; `error`,
        the expected calibration error `before` and `after`, and `reliability`, the same by bins; `wanted`, `thresholds`
        by label or for all; and `notes`, sentences about what so many images cannot tell.

    Raises:
        ValueError: There are too few images, the targets do not fit the mode, or thresholds cannot be reached.
    """
    _check(head, evidence, targets, precision, recall)
    evidence, mode = evidence.double(), head.mode
    places = _columns_of(head, targets)
    counts = targets.sum(0)
    enough = counts >= LEAST_OF_A_LABEL
    if mode == "any":
        enough = torch.cat([enough, (~targets.any(1)).sum()[None] > 0])
    folds = torch.randperm(len(evidence), generator=torch.Generator().manual_seed(0)) % FOLDS
    fit = partial(_fit, mode=mode, enough=enough)
    report: dict[str, Any] = {"images": len(evidence), "examples": _by_label(head, counts.tolist())}
    crossed, own = None, False
    if len(evidence) >= LEAST_FOR_FOLDS:
        tried = {own: _crossed(evidence, targets, places, folds, mode, partial(fit, own=own)) for own in (False, True)}
        losses = {own: _loss(scores, targets, places, mode).item() for own, scores in tried.items()}
        own = bool(enough[: len(head.labels)].any()) and losses[True] < losses[False]
        crossed = tried[own]
    temperature, weight, offsets = fit(evidence, targets, places, own=own)
    before = probabilities(evidence, mode)
    after = probabilities(evidence, mode, temperature, weight, offsets)
    report["own_offsets"] = own
    errors = {"before": before, "after": crossed}
    pairs = {name: _confidences(scores, targets, places, mode) for name, scores in errors.items() if scores is not None}
    report["error"] = {name: expected_calibration_error(*pair) for name, pair in pairs.items()}
    report["reliability"] = {name: reliability(*pair) for name, pair in pairs.items()}
    least, chosen = _thresholds(head, after, targets, places, precision, recall)
    report["wanted"] = {name: share for name, share in (("precision", precision), ("recall", recall)) if share}
    report["thresholds"] = {name: asdict(threshold) for name, threshold in chosen.items()}
    report["notes"] = _notes(head, report, chosen, targets, weight)
    strangeness, right = _strangeness(before, places, mode)
    calibration = Calibration(temperature, weight, offsets.float(), least, strangeness, right, report)
    return replace(head, calibration=calibration)


def targets_of(labels: Sequence[Any], shown: Iterable[Any]) -> Tensor:
    """Return True where an image shows a label (images, labels).

    Args:
        labels: The labels of a head.
        shown: For each image a label, a list of labels, or None or NONE_LABEL for none of them.

    Raises:
        ValueError: An image shows something that is no label.
    """
    places = {label: place for place, label in enumerate(labels)}
    rows = []
    for number, value in enumerate(shown):
        row = torch.zeros(len(labels), dtype=torch.bool)
        for label in list(value) if isinstance(value, list | tuple | set) else [value]:
            if label is not None and label != NONE_LABEL:
                if label not in places:
                    raise ValueError(
                        f"image {number} shows {label!r}, which is none of the {len(labels)} labels: "
                        f"{listing([str(each) for each in labels], 5)}"
                    )
                row[places[label]] = True
        rows.append(row)
    return torch.stack(rows) if rows else torch.zeros(0, len(labels), dtype=torch.bool)


def _check(
    head: ClassifierHead, evidence: Tensor, targets: Tensor, precision: float | None, recall: float | None
) -> None:
    if targets.shape != (len(evidence), len(head.labels)):
        raise ValueError(f"{len(evidence)} images have labels of {len(targets)}: give what each image shows")
    if len(evidence) < 2:
        raise ValueError(f"{len(evidence)} images calibrate nothing: give at least two")
    if not evidence.isfinite().all():
        raise ValueError("the scores hold NaN or infinite values: check the model's dtype and the images")
    if len(set(head.labels)) < len(head.labels):
        raise ValueError("a label is given twice: give each once")
    if precision is not None and recall is not None:
        raise ValueError("precision and recall are both given: choose one")
    if head.mode == "one" and len(head.labels) < 2:
        raise ValueError("the mode one has nothing to calibrate with one label: take the mode any or each")
    if head.mode != "each" and (several := (targets.sum(1) > 1).nonzero().flatten().tolist()):
        raise ValueError(f"image {several[0]} shows several labels: take the mode each")
    if head.mode == "one" and (without := (~targets.any(1)).nonzero().flatten().tolist()):
        raise ValueError(f"image {without[0]} shows none of the labels: take the mode any or each")
    if head.mode == "each" and (targets.all() or not targets.any()):
        raise ValueError("all images show all labels, or none shows any: give images with and without each")
    if len(evidence) and (evidence - evidence[:1]).abs().max() == 0:
        raise ValueError("all images have the same scores: check the images and the model")


def _columns_of(head: ClassifierHead, targets: Tensor) -> Tensor:
    """Return the right column of each image; that of NONE_LABEL where it shows no label."""
    none = torch.full((len(targets),), len(head.labels))
    return none if head.mode == "each" else torch.where(targets.any(1), targets.int().argmax(1), none)


def _fit(
    evidence: Tensor, targets: Tensor, places: Tensor, *, mode: Mode, enough: Tensor, own: bool
) -> tuple[float, float, Tensor]:
    """Fit temperature, weight of the background and offsets; offsets are one for all labels unless `own`."""
    columns = targets.shape[1] + (mode == "any")
    shared = torch.ones(columns, dtype=torch.bool)
    if mode == "any":
        shared[:-1] = False
    log_slope, weight, common = (torch.zeros(1, dtype=torch.double, requires_grad=True) for _ in range(3))
    single = torch.zeros(columns, dtype=torch.double, requires_grad=True)
    has_common = mode == "each" or (mode == "any" and bool(enough[-1]))
    has_own = enough[:columns] & (~shared if mode == "any" else True) if own else torch.zeros(columns, dtype=torch.bool)

    def offsets() -> Tensor:
        return common * (shared & has_common) + single * has_own

    def loss() -> Tensor:
        scores = probabilities(evidence, mode, torch.exp(-log_slope), 1 + weight, offsets())
        prior = log_slope.square() + weight.square() + (common / FREE).square() + single.square().sum()
        return _loss(scores, targets, places, mode) + prior.sum() / 2

    parameters = [log_slope, weight, common, single]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(step)
    return (-log_slope).exp().item(), 1 + weight.item(), offsets().detach()


def _loss(scores: Tensor, targets: Tensor, places: Tensor, mode: Mode) -> Tensor:
    """Return the negative logarithm of the likelihood of the labels, summed over images."""
    if mode == "each":
        return binary_cross_entropy(scores.clamp(SMALLEST, 1 - SMALLEST), targets.to(scores), reduction="sum")
    return nll_loss(scores.clamp(min=SMALLEST).log(), places, reduction="sum")


def _crossed(
    evidence: Tensor, targets: Tensor, places: Tensor, folds: Tensor, mode: Mode, fit: Callable[..., Any]
) -> Tensor:
    """Return the scores of each image by a fit to the other folds."""
    scores = torch.zeros(len(evidence), targets.shape[1] + (mode == "any"), dtype=evidence.dtype)
    for fold in range(FOLDS):
        held = folds == fold
        fitted = fit(evidence[~held], targets[~held], places[~held])
        scores[held] = probabilities(evidence[held], mode, *fitted)
    return scores


def _confidences(scores: Tensor, targets: Tensor, places: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """Return the probabilities to be calibrated, of the best column or of all labels, and True where they hit."""
    if mode == "each":
        return scores.flatten(), targets.flatten()
    best = scores.max(1)
    return best.values.clamp(max=1), best.indices == places


def _thresholds(
    head: ClassifierHead,
    scores: Tensor,
    targets: Tensor,
    places: Tensor,
    precision: float | None,
    recall: float | None,
) -> tuple[Tensor | None, dict[str, Threshold]]:
    """Choose the least score of each label, its own where its images assure it and one for all elsewhere."""
    if precision is None and recall is None:
        return None, {}
    taken = _taken(head, scores)  # -inf where no threshold takes the label
    columns = range(len(head.labels))

    def choose(some: Sequence[int]) -> Threshold:
        values, hits = taken[:, some].flatten(), targets[:, some].flatten()
        if recall is not None:
            return threshold_for_recall(values[hits], recall)
        can = values > -torch.inf
        return threshold_for_precision(values[can], hits[can], precision)  # type: ignore[arg-type]

    chosen = {"all": choose(list(columns))}
    for place in columns:
        try:
            own = choose([place])
        except ValueError:  # no image, or out of reach
            continue
        if own.assured:
            chosen[str(head.labels[place])] = own
    values = [chosen.get(str(label), chosen["all"]).value for label in head.labels]
    # a score in float32 must reach the threshold that was chosen as one in float64
    return torch.tensor(values).sub(1e-6).clamp(min=0), chosen


def _taken(head: ClassifierHead, scores: Tensor) -> Tensor:
    """Return the scores (images, labels) with which labels may be taken; -inf for all but the best unless "each"."""
    if head.mode == "each":
        return scores
    best = scores == scores.max(1, keepdim=True).values
    return torch.where(best, scores, -torch.inf)[:, : len(head.labels)]


def _strangeness(before: Tensor, places: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """Return 1 minus the uncalibrated probability of each image's right column, and that column.

    Uncalibrated, because sets keep their coverage only by scores that did not see the images.
    """
    if mode == "each":
        return torch.zeros(0), torch.zeros(0, dtype=torch.long)
    return 1 - before.gather(1, places[:, None])[:, 0].float(), places


def _by_label(head: ClassifierHead, values: Sequence[Any]) -> dict[str, Any]:
    return {str(label): value for label, value in zip(head.labels, values, strict=True)}


def _notes(
    head: ClassifierHead, report: dict[str, Any], chosen: dict[str, Threshold], targets: Tensor, weight: float
) -> list[str]:
    """List the limits of a calibration by so many images, a sentence each."""
    notes = []
    if head.mode != "one" and weight < LITTLE:
        notes.append(
            f"the background counts {weight:.2f} times: its texts, {listing(head.background, 5)}, tell little about "
            "these images: name others"
        )
    few = [f"{label} {count}" for label, count in report["examples"].items() if count < LEAST_OF_A_LABEL]
    if few:
        notes.append(
            f"{len(few)} of {len(head.labels)} labels have fewer than {LEAST_OF_A_LABEL} images ({listing(few, 5)}): "
            "how well each of them does is not known, and none gets an offset of its own"
        )
    if "after" not in report["error"]:
        notes.append(f"fewer than {LEAST_FOR_FOLDS} images: the error after calibration is not known")
    elif report["images"] < NOISY:
        notes.append(f"fewer than {NOISY} images: errors before and after are mostly noise")
    if head.mode == "any" and targets.any(1).all():
        notes.append(f"no image shows none of the labels: how often {NONE_LABEL!r} is right is not known")
    if chosen and not chosen["all"].assured:
        [(kind, share)] = report["wanted"].items()
        of = "images that get a label" if kind == "precision" else "images with a label"
        notes.append(
            f"{chosen['all'].count} {of} cannot assure a {kind} of {share:g}: at least {images_needed(share)} are "
            "needed, and more if some are wrong"
        )
    shared = [label for label in head.labels if str(label) not in chosen] if chosen else []
    if len(shared) > 1:
        notes.append(f"{len(shared)} labels share one threshold, which holds for them together and not for each")
    return notes


__all__ = ["calibrate_head", "targets_of"]
