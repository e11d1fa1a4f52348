"""Images of a labeled data set to look at again: labels that may be wrong, near-duplicates, images of no class."""

import csv
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import Exif
from ..data.rows import DataError, Row
from ..evaluation.embeddings import image_embeds
from ..evaluation.tasks import chosen_templates, class_names, to_rows
from ..few_shot.fitting import check_classes, check_spread, held_out_probabilities
from ..search.duplicates import find_duplicates
from ..utils.files import replacing
from ..utils.packages import require
from ..utils.text import as_line
from ..zero_shot.prompts import embed_labels
from ..zero_shot.scoring import check_model, zero_shot_logits

# the modified z-score from which a value is an outlier, and what makes its unit a standard deviation (Iglewicz and
# Hoaglin, 1993)
OUTLIER, NORMAL = 3.5, 0.6745
# images that an outlier is compared with, so that a few like it do not hide it; rows that are compared at once
LIKE_IMAGES, COMPARED_ROWS = 5, 1024
# the least share of labels that heads agree with before those that they doubt are worth a look
TRUSTED = 0.9
COLUMNS = ("path", "split", "label", "kind", "suggestion", "score")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suspect:
    """One image to look at again.

    Args:
        row: The image.
        split: The data set that it is in.
        label: Its label.
        kind: `label` for a label that is probably wrong; `split` for an image that is nearly the same as one of another
            data set, `conflict` as one of another label; `outlier` for an image that is unlike all others, and so fits
            no class.
        suggestion: The label that fits better, or the path of the image that is nearly the same.
        score: By how much the suggested label is more probable; the cosine of near-duplicates; the modified z-score of
            an outlier.
        other: The image that is nearly the same.
    """

    row: Row
    split: str
    label: str
    kind: str
    suggestion: str
    score: float
    other: Row | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the values of COLUMNS by name."""
        path, suggestion = as_line(self.row.name), as_line(self.suggestion)
        values = (path, self.split, self.label, self.kind, suggestion, self.score)
        return dict(zip(COLUMNS, values, strict=True))


def find_suspects(
    model: Any,
    processor: Any,
    data: Any,
    *,
    threshold: float = 0.98,
    templates: str | Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = 16,
    workers: int | None = None,
    store: str | os.PathLike[str] | None = None,
    exif: Exif = "ignore",
    report: Callable[[str], None] = logger.info,
) -> list[Suspect]:
    """List the images of a labeled data set, or of several splits of one, that should be looked at again.

    Labels are judged by confident learning, with probabilities from heads that have not seen the image.

    Args:
        model: A CLIP of both towers, in evaluation mode.
        processor: Its processor.
        data: Labeled images, as `hf_clip.data.read.read_rows` reads them, or their rows; or a list of such, whose
            images should not overlap.
        threshold: The least cosine of images that are nearly the same.
        templates: Texts with `{}` for the label; those of the data, else "a photo of a {}.", unless given.
        folds: The number of parts that are held out in turn.
        seed: Seed of the parts.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.
        store: A folder that keeps the embeddings of images for later calls.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.
        report: Called with a sentence about how far the heads that judge the labels can be trusted.

    Returns:
        Suspects by kind, the surest of each kind first.

    Raises:
        DataError: There is one class, or splits have other classes.
        MissingPackageError: scikit-learn is not installed.

    Example:
        >>> for suspect in find_suspects(model, processor, ["photos/train", "photos/test"]):
        ...     print(suspect.row.name, suspect.kind, suspect.suggestion)
    """
    require("sklearn", "eval", "find_suspects")
    check_model(model)
    splits = [to_rows(each) for each in (data if isinstance(data, list | tuple) else [data])]
    names = class_names(splits[0], None)
    for split in splits:
        class_names(split, None)
        if split.labels != splits[0].labels:
            raise DataError(f"{split.name} has other classes than {splits[0].name}: give the same, in one order")
    rows = [row for split in splits for row in split]
    targets = torch.tensor([row.label for row in rows])
    check_classes(splits[0].name, names, targets)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "store": store, "exif": exif}
    embeds = torch.cat([image_embeds(model, processor, split, **options) for split in splits])
    check_spread(splits[0].name, embeds)
    texts = embed_labels(model, processor, names, chosen_templates(splits[0], templates))
    places, probabilities = held_out_probabilities(
        zero_shot_logits(model, embeds, texts).cpu(), embeds, targets, folds, seed
    )
    report(_trust((probabilities.argmax(1) == targets[places]).double().mean().item()))
    owners = np.repeat(np.arange(len(splits)), [len(split) for split in splits])

    def suspect(place: int, kind: str, suggestion: str, score: float, other: int | None = None) -> Suspect:
        other_row = None if other is None else rows[other]
        label = str(names[int(targets[place])])
        return Suspect(rows[place], splits[owners[place]].name, label, kind, suggestion, score, other_row)

    wrong, better, margins = wrong_labels(probabilities, targets[places])
    found = [
        suspect(int(places[place]), "label", str(names[label]), margin)
        for place, label, margin in zip(wrong.tolist(), better.tolist(), margins.tolist(), strict=True)
    ]
    for first, other, score in _near_pairs(embeds.numpy(), threshold):
        apart = owners[first] != owners[other]
        if apart or targets[first] != targets[other]:
            kind = "split" if apart else "conflict"
            found.append(suspect(other, kind, rows[first].name, score, first))
    far, scores = outliers(embeds)
    found += [suspect(place, "outlier", "", score) for place, score in zip(far.tolist(), scores.tolist(), strict=True)]
    kinds = ("label", "conflict", "split", "outlier")
    return sorted(found, key=lambda one: (kinds.index(one.kind), -abs(one.score)))


def _trust(agreement: float) -> str:
    """Return a sentence about heads that agree with this share of the labels of images they have not seen."""
    told = f"the heads agree with {agreement:.0%} of the labels of images that they have not seen"
    if agreement >= TRUSTED:
        return told
    return f"{told}, too few to trust: most of the labels that they doubt are right, unless as many labels are wrong"


def wrong_labels(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find labels that are probably wrong by confident learning (Northcutt et al., arXiv:1911.00068).

    The threshold of a class is the mean probability that images labeled so have of it. An image counts for the most
    probable class among those whose threshold it reaches; its label is suspect if that is another class.

    Args:
        probabilities: (N, classes) from models that have not seen the image.
        targets: The labels (N,).

    Returns:
        Places (S,), the classes (S,) that fit better, and by how much these are more probable (S,).
    """
    classes = probabilities.shape[1]
    if not len(targets):
        return targets, targets, probabilities.new_empty(0)
    own = probabilities.gather(1, targets[:, None])[:, 0]
    counts = torch.bincount(targets, minlength=classes)
    thresholds = torch.zeros(classes).index_add_(0, targets, own) / counts  # NaN, which none reaches, without images
    confident = probabilities.where(probabilities >= thresholds, probabilities.new_tensor(-1.0))
    best, fits = confident.max(1)
    wrong = ((best >= 0) & (fits != targets)).nonzero().flatten()
    return wrong, fits[wrong], probabilities[wrong, fits[wrong]] - own[wrong]


def outliers(embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Find images that are unlike all others: outliers of the mean cosine with the LIKE_IMAGES nearest ones.

    Args:
        embeds: Embeddings (N, dim) of length 1.

    Returns:
        Places (O,) and their modified z-scores (O,), all below -OUTLIER.
    """
    count = min(LIKE_IMAGES + 1, len(embeds))
    # of each row the largest cosine is that with itself
    near = [(block @ embeds.T).topk(count, 1).values[:, 1:].mean(1) for block in embeds.split(COMPARED_ROWS)]
    likeness = torch.cat(near)
    distance = likeness - likeness.median()
    scores = NORMAL * distance / distance.abs().median().clamp(min=1e-6)
    far = (scores < -OUTLIER).nonzero().flatten()
    return far, scores[far]


def _near_pairs(embeds: np.ndarray, threshold: float) -> Iterator[tuple[int, int, float]]:
    """Yield near-duplicates as the first image of a group, another, and their cosine."""
    for group in find_duplicates(embeds, threshold):
        for other, score in zip(group.others, group.scores, strict=True):
            yield group.keeper, other, score


def write_suspects(suspects: Sequence[Suspect], output: Path) -> None:
    """Write suspects as a csv of COLUMNS."""
    with replacing(output) as work, work.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(suspect.to_json() for suspect in suspects)


def sheet_images(suspects: Sequence[Suspect], most: int) -> list[tuple[Any, str]]:
    """Return images and captions for a sheet, at most so many of each kind; near-duplicates follow each other."""
    images = []
    for kind, group in groupby(suspects, key=lambda suspect: suspect.kind):
        for suspect in list(group)[:most]:
            about = {"label": f"{suspect.label}, or {suspect.suggestion}?", "outlier": f"{suspect.label}?"}
            caption = f"{kind}: {about.get(kind, f'{suspect.label}, nearly the same as the next')}"
            images.append((suspect.row, f"{caption} ({suspect.score:.2f}) {suspect.row.name}"))
            if suspect.other is not None:
                images.append((suspect.other, f"{kind}: {suspect.other.name}"))
    return images


__all__ = ["Suspect", "find_suspects", "outliers", "sheet_images", "write_suspects", "wrong_labels"]
