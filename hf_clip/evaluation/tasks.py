"""Evaluators: functions of a model that classify or search a whole data set (paper sections 3.1 and E.1).

`hf-clip evaluate`, the sets watched by `CLIPTrainer`, `hf-clip merge --sweep` and `hf-clip export --evaluate` all call
these, so a number seen in training is the number measured afterwards.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.images import Exif
from ..data.labels import check_words
from ..data.read import read_rows
from ..data.rows import DataError, Rows
from ..embedding.identity import image_probe, name_of
from ..embedding.texts import embed_texts
from ..metrics.classification import class_ranks, classification_outcomes, mean_average_precision
from ..metrics.outcomes import means
from ..metrics.retrieval import RECALL_AT, retrieval_outcomes, retrieval_ranks, with_mean_recall
from ..model.modeling_hf_clip_base import normalize as unit_length
from ..zero_shot.prompts import TEMPLATE, as_templates, embed_labels
from ..zero_shot.scoring import check_model, zero_shot_logits
from .embeddings import data_fingerprint, image_embeds, readable_image_embeds
from .results import Result, chance_of_several

PROBE_VALUES = 16
WORST = 20


def zero_shot(
    model: Any,
    processor: Any,
    data: Any,
    labels: Sequence[Any] | None = None,
    templates: str | Sequence[str] | None = None,
    *,
    dataset: str | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    store: str | os.PathLike[str] | None = None,
    exif: Exif = "ignore",
    strict: bool = True,
) -> Result:
    """Measure zero-shot accuracy: each image is given the class whose prompts are most similar to it.

    Args:
        model: A CLIP with both towers, in evaluation mode.
        processor: Its processor.
        data: Labeled images, as `hf_clip.data.read.read_rows` reads them from class folders, tables, tars or mappings;
            or its rows.
        labels: A name for each class, in the order of the data; a list of synonyms is averaged like templates.
        templates: Texts with `{}` for the name; those of the data, else "a photo of a {}.", unless given.
        dataset: The name in the result; that of the data by default.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.
        store: A folder that keeps the embeddings of images for later calls.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.
        strict: Raise UnreadableImageError for an image that cannot be read; False leaves it out with a warning.

    Returns:
        A result with acc1, acc5 (from five classes on) and mean_per_class_recall; where an image may show several
        classes, with mean_average_precision.

    Raises:
        DataError: An image has no label, or the names are not as many as the classes.
        UnreadableImageError: An image cannot be read.

    Example:
        >>> zero_shot(model, processor, "photos").metrics["acc1"]
        0.9
    """
    rows = to_rows(data)
    names, templates = class_names(rows, labels, several=True), chosen_templates(rows, templates)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "store": store, "exif": exif}
    if rows.is_multilabel:
        return _multilabel(model, processor, rows, names, templates, dataset or rows.name, strict=strict, **options)
    answers = classify_rows(model, processor, rows, names, templates, strict=strict, **options)
    outcomes = classification_outcomes(answers.ranks, answers.targets, len(names))
    counts = {"classes": len(names), "templates": len(templates), **prompt_settings(rows, names, templates)}
    return Result(
        dataset or rows.name,
        "zeroshot_classification",
        name_of(model),
        means(outcomes),
        outcomes,
        class_details(answers.found, answers.targets, names),
        settings_of(model, processor, answers.rows, exif) | counts,
    )


def _multilabel(
    model: Any,
    processor: Any,
    rows: Rows,
    names: Sequence[Any],
    templates: Sequence[str],
    dataset: str,
    *,
    batch_size: int,
    strict: bool,
    exif: Exif,
    **options: Any,
) -> Result:
    check_model(model)
    class_embeds = embed_classes(model, processor, names, templates)
    rows, embeds = embed_rows(model, processor, rows, strict, batch_size=batch_size, exif=exif, **options)
    scores = torch.cat(list(score(model, embeds, class_embeds, batch_size)))
    targets = torch.from_numpy(rows.multi_hot())
    shown = [place for place in range(len(names)) if targets[:, place].any()]
    if not shown:
        raise DataError(f"no image of {rows.name} shows a class: give labels, or other images")
    texts = [name if isinstance(name, str) else name[0] for name in names]
    precisions = {
        f"{place} {texts[place]}": mean_average_precision(scores[:, [place]], targets[:, [place]]) for place in shown
    }
    counts = {"classes": len(names), "templates": len(templates), "chance": chance_of_several(targets.numpy())}
    return Result(
        dataset,
        "zeroshot_multilabel",
        name_of(model),
        {"mean_average_precision": mean_average_precision(scores, targets)},
        details={
            "per_class_average_precision": dict(sorted(precisions.items(), key=lambda each: each[1])),
            "classes_without_images": [texts[place] for place in range(len(names)) if place not in shown],
        },
        settings=settings_of(model, processor, rows, exif) | counts | prompt_settings(rows, names, templates),
    )


class Answers(NamedTuple):
    """A model's zero-shot classification of labeled images.

    Args:
        rows: The images that were read.
        found: The class of the highest score of each image (images,).
        ranks: The number of classes that score higher than the right one (images,).
        targets: The right classes (images,).
    """

    rows: Rows
    found: Tensor
    ranks: Tensor
    targets: Tensor

    @property
    def accuracy(self) -> float:
        """Return the share of images whose own class scores highest."""
        return float((self.ranks == 0).float().mean())


def classify_rows(
    model: Any,
    processor: Any,
    rows: Rows,
    names: Sequence[Any],
    templates: Sequence[str],
    *,
    batch_size: int = 16,
    strict: bool = True,
    **options: Any,
) -> Answers:
    """Classify labeled images by their similarity to class names in templates; see `zero_shot`."""
    check_model(model)
    class_embeds = embed_classes(model, processor, names, templates)
    rows, embeds = embed_rows(model, processor, rows, strict, batch_size=batch_size, **options)
    targets = torch.tensor([row.label for row in rows])
    ranks, found = [], []
    for logits, target in zip(score(model, embeds, class_embeds, batch_size), targets.split(batch_size), strict=True):
        ranks.append(class_ranks(logits, target))
        found.append(logits.argmax(1))
    return Answers(rows, torch.cat(found), torch.cat(ranks), targets)


def embed_rows(model: Any, processor: Any, rows: Rows, strict: bool, **options: Any) -> tuple[Rows, Tensor]:
    """Embed all images of a data set; unreadable ones are left out unless `strict`."""
    if strict:
        return rows, image_embeds(model, processor, rows, **options)
    if options.pop("store", None) is not None:
        raise ValueError("store keeps the embeddings of all images: leave it out, or give strict=True")
    return readable_image_embeds(model, processor, rows, **options)


def retrieval(
    model: Any,
    processor: Any,
    data: Any,
    *,
    k: Sequence[int] = RECALL_AT,
    dataset: str | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    store: str | os.PathLike[str] | None = None,
    exif: Exif = "ignore",
    strict: bool = True,
) -> Result:
    """Measure retrieval: search captions by image and images by caption, and count the hits among the first k.

    Each caption of an image is right for it. Rows of one file are one image.

    Args:
        model: A CLIP with both towers, in evaluation mode.
        processor: Its processor.
        data: Images with one or more captions, as `hf_clip.data.read.read_rows` reads them; or its rows.
        k: Numbers of best candidates among which a match is a hit.
        dataset: The name in the result; that of the data by default.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.
        store: A folder that keeps the embeddings of images for later calls.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.
        strict: Raise UnreadableImageError for an image that cannot be read; False leaves it out with a warning.

    Returns:
        A result with image_retrieval_recall@k, text_retrieval_recall@k and mean_recall@1.

    Raises:
        DataError: An image has no caption.
        UnreadableImageError: An image cannot be read.

    Example:
        >>> retrieval(model, processor, "pairs.csv").metrics["mean_recall@1"]
        0.7
    """
    check_model(model)
    rows = to_rows(data).grouped()
    if without := next((row.name for row in rows if not row.texts), None):
        raise DataError(f"{without} has no caption: give it one, or leave it out")
    options = {"batch_size": batch_size, "workers": workers, "store": store, "exif": exif}
    rows, embeds = embed_rows(model, processor, rows, strict, **options)
    image_of_text = torch.tensor([place for place, row in enumerate(rows) for _ in row.texts])
    texts = [text for row in rows for text in row.texts]
    text_embeds = embed_texts(model, processor, texts, truncation=True)
    image_ranks, text_ranks = retrieval_ranks(embeds, text_embeds, image_of_text)
    outcomes = retrieval_outcomes(image_ranks, text_ranks, image_of_text, k)
    curves = {
        name: [[place, (ranks < place).double().mean().item()] for place in curve_places(len(others))]
        for name, ranks, others in (("text", image_ranks, text_ranks), ("image", text_ranks, image_ranks))
    }
    ranks = {"image_median_rank": text_ranks, "text_median_rank": image_ranks}
    medians = {name: values.median().item() + 1 for name, values in ranks.items()}
    settings = settings_of(model, processor, rows, exif) | {"texts": len(texts), "k": list(k)}
    details = {"recall": curves, **medians}
    metrics = with_mean_recall(outcomes)
    return Result(dataset or rows.name, "zeroshot_retrieval", name_of(model), metrics, outcomes, details, settings)


Evaluator = Callable[[Any, Any], Result]  # of a model and its processor


@dataclass
class ZeroShotSet:
    """Measure zero-shot accuracy on one data set: an evaluator, to be called with a model and its processor.

    `CLIPTrainer` takes it as a set to watch, so that forgetting shows. Images that cannot be read are left out with a
    warning: a training should not end for one.

    Args:
        rows: Labeled images, as `hf_clip.data.read.read_rows` reads them; or its rows.
        templates: Texts with `{}` for the label; those of the data set, else "a photo of a {}.", unless given.
        batch_size: Images per pass through the model.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.

    Raises:
        DataError: An image has no label, or the data set cannot be read.

    Example:
        >>> trainer = CLIPTrainer(model, processor, args, train_dataset=train, watch={"pets": ZeroShotSet("pets")})
    """

    rows: Any
    templates: str | Sequence[str] | None = None
    batch_size: int = 16
    exif: Exif = "ignore"

    def __post_init__(self) -> None:
        """Read the rows if they are a path."""
        self.rows = to_rows(self.rows)
        if any(row.label is None and row.classes is None for row in self.rows):
            raise DataError(f"{self.rows.name} has images without a label: a watched set needs one for each")

    def __call__(self, model: Any, processor: Any) -> Result:
        """Evaluate a model."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "exif": self.exif, "strict": False}
        return zero_shot(model, processor, self.rows, templates=self.templates, **options)


def evaluator_of(rows: Rows, exif: Exif = "ignore") -> Evaluator:
    """Return the evaluator that fits a data set: zero-shot accuracy on labels, retrieval on captions."""
    if not any(row.texts for row in rows):
        return ZeroShotSet(rows, exif=exif)
    return lambda model, processor: retrieval(model, processor, rows, exif=exif, strict=False)


def to_rows(data: Any, **options: Any) -> Rows:
    """Read a data set with the options of `read_rows`; rows that are read already are returned as they are."""
    return data if isinstance(data, Rows) else read_rows(data, **options)


def class_names(rows: Rows, labels: Sequence[Any] | None, several: bool = False) -> list[Any]:
    """Return a name for each class of labeled images.

    Args:
        rows: The images.
        labels: The names, where they are not those of the data.
        several: Admit images of several classes.

    Raises:
        DataError: An image has no label, or several, or there are not as many labels as classes.
    """
    if rows.is_multilabel and not several:
        raise DataError(f"an image of {rows.name} may show several classes: give data with one label for each")
    if without := next((row.name for row in rows if row.label is None and row.classes is None), None):
        raise DataError(f"{without} has no label: give it one, or leave it out")
    if not labels:
        check_words(rows.labels, rows.name)
    names = list(labels or rows.labels)
    classes = len(rows.labels) or 1 + max(row.label or 0 for row in rows)
    if len(names) != classes:
        raise DataError(f"{rows.name} has {classes} classes, {len(names)} labels are given: name each, in their order")
    return names


def embed_classes(model: Any, processor: Any, labels: Sequence[Any], templates: Sequence[str]) -> Tensor:
    """Compute class embeddings (classes, dim), averaged over templates and synonyms."""
    if all(isinstance(label, str) for label in labels):
        return embed_labels(model, processor, labels, templates)
    names = [[label] if isinstance(label, str) else list(label) for label in labels]
    if empty := next((place for place, synonyms in enumerate(names) if not synonyms), None):
        raise DataError(f"class {empty} has no name: give at least one")
    prompts = [[template.format(name) for name in synonyms for template in templates] for synonyms in names]
    embeds = embed_texts(model, processor, [prompt for group in prompts for prompt in group])
    return torch.stack([unit_length(group.mean(0)) for group in embeds.split([len(group) for group in prompts])])


def score(model: Any, embeds: Tensor, class_embeds: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield logits (batch_size, classes) on the CPU, as ZeroShotClassifier computes them."""
    class_embeds = class_embeds.to(model.device)
    for part in embeds.split(batch_size):
        yield zero_shot_logits(model, part.to(model.device), class_embeds).cpu()


def class_details(found: Tensor, targets: Tensor, names: Sequence[Any]) -> dict[str, Any]:
    """Return the recall of each class that has images, lowest first, and the most frequent confusions."""
    classes = len(names)
    texts = [name if isinstance(name, str) else name[0] for name in names]
    counts = torch.bincount(targets, minlength=classes)
    recall = torch.bincount(targets, (found == targets).double(), minlength=classes) / counts
    order = recall.nan_to_num(2).argsort(stable=True)[: int((counts > 0).sum())].tolist()
    wrong = found != targets
    pairs, times = (targets[wrong] * classes + found[wrong]).unique(return_counts=True)
    worst = times.argsort(descending=True, stable=True)[:WORST]
    return {
        "per_class_recall": {f"{place} {texts[place]}": recall[place].item() for place in order},
        "confusions": [
            [texts[pair // classes], texts[pair % classes], count]
            for pair, count in zip(pairs[worst].tolist(), times[worst].tolist(), strict=True)
        ],
        "classes_without_images": [texts[place] for place in (counts == 0).nonzero().flatten().tolist()],
    }


def curve_places(candidates: int) -> list[int]:
    """Return the k at which a recall curve is drawn: 1, 2, 5, 10, 20, ... up to all candidates."""
    places = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    return [place for place in places if place < candidates] + [candidates]


def chosen_templates(rows: Rows, templates: str | Sequence[str] | None) -> list[str]:
    """Return the given templates, else those of the data set, else the default one."""
    return as_templates(templates or rows.templates or TEMPLATE)


def prompt_settings(rows: Rows, labels: Sequence[Any] | None, templates: str | Sequence[str] | None) -> dict[str, str]:
    """Return a digest of the class names and templates, by which a saved result is matched."""
    prompts = (class_names(rows, labels, several=True), chosen_templates(rows, templates))
    return {"prompts": hashlib.sha256(repr(prompts).encode()).hexdigest()[:16]}


def settings_of(model: Any, processor: Any, rows: Rows, exif: Exif) -> dict[str, Any]:
    """Return the settings by which a saved result is matched with a model and its data."""
    return {
        "images": len(rows),
        "data": data_fingerprint(rows),
        "exif": exif,
        "dtype": str(model.dtype).removeprefix("torch."),
        "probe": image_probe(model, processor)[:PROBE_VALUES].tolist(),
    }


__all__ = [
    "Answers",
    "Evaluator",
    "ZeroShotSet",
    "class_details",
    "class_names",
    "classify_rows",
    "embed_classes",
    "embed_rows",
    "evaluator_of",
    "prompt_settings",
    "retrieval",
    "score",
    "settings_of",
    "to_rows",
    "zero_shot",
]
