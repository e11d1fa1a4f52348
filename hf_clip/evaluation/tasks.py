"""Zero-shot classification and retrieval of whole data sets (paper sections 3.1 and E.1)."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.read import read_rows
from ..data.rows import DataError, Rows
from ..embedding.identity import image_probe, name_of
from ..embedding.texts import embed_texts
from ..model.modeling_hf_clip_base import normalize as unit_length
from ..zero_shot.prompts import TEMPLATE, as_templates, embed_labels
from ..zero_shot.scoring import check_model, zero_shot_logits
from .embeddings import fingerprint, image_embeds
from .metrics import (
    RECALL_AT,
    class_ranks,
    classification_outcomes,
    means,
    retrieval_outcomes,
    retrieval_ranks,
)
from .results import Result

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
) -> Result:
    """Classify labeled images by their similarity to class names in templates, and count the hits.

    Args:
        model: A CLIP with both towers, in evaluation mode.
        processor: Its processor.
        data: What `hf_clip.data.read.read_rows` reads: class folders, tables, tars, mappings; or its rows.
        labels: A name for each class of the data, in its order; a list of synonyms counts as more templates.
        templates: Texts with `{}` for the name; those of the data, else "a photo of a {}.", unless given.
        dataset: The name in results; the data's own unless given.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.
        store: A folder that keeps the embeddings of images for later calls.

    Returns:
        A result with acc1, acc5 (from five classes on) and mean_per_class_recall.

    Raises:
        DataError: An image has no label, or the names are not as many as the classes.
        UnreadableImageError: An image can't be read.

    Example:
        >>> zero_shot(model, processor, "photos").metrics["acc1"]
        0.9
    """
    check_model(model)
    rows = as_rows(data)
    names = class_names(rows, labels)
    templates = chosen_templates(rows, templates)
    class_embeds = embed_classes(model, processor, names, templates)
    embeds = image_embeds(model, processor, rows, batch_size=batch_size, workers=workers, store=store)
    targets = torch.tensor([row.label for row in rows])
    ranks, found = [], []
    for logits, target in zip(score(model, embeds, class_embeds, batch_size), targets.split(batch_size), strict=True):
        ranks.append(class_ranks(logits, target))
        found.append(logits.argmax(1))
    outcomes = classification_outcomes(torch.cat(ranks), targets, len(names))
    counts = {"classes": len(names), "templates": len(templates), **prompt_settings(rows, names, templates)}
    return Result(
        dataset or rows.name,
        "zeroshot_classification",
        name_of(model),
        means(outcomes),
        outcomes,
        class_details(torch.cat(found), targets, names),
        settings_of(model, processor, rows) | counts,
    )


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
) -> Result:
    """Search captions by image and images by caption, and count the searches that find a match among the first k.

    Args:
        model: A CLIP with both towers, in evaluation mode.
        processor: Its processor.
        data: Images with one or more captions, as `hf_clip.data.read.read_rows` reads them; or its rows.
        k: Places that count as found.
        dataset: The name in results; the data's own unless given.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.
        store: A folder that keeps the embeddings of images for later calls.

    Returns:
        A result with image_retrieval_recall@k, text_retrieval_recall@k and mean_recall@1.

    Raises:
        DataError: An image has no caption.
        UnreadableImageError: An image can't be read.

    Example:
        >>> retrieval(model, processor, "pairs.csv").metrics["mean_recall@1"]
        0.7
    """
    check_model(model)
    rows = as_rows(data).grouped()
    if without := next((row.name for row in rows if not row.texts), None):
        raise DataError(f"{without} has no caption: give it one, or leave it out")
    image_of_text = torch.tensor([place for place, row in enumerate(rows) for _ in row.texts])
    texts = [text for row in rows for text in row.texts]
    text_embeds = embed_texts(model, processor, texts, truncation=True)
    embeds = image_embeds(model, processor, rows, batch_size=batch_size, workers=workers, store=store)
    image_ranks, text_ranks = retrieval_ranks(embeds, text_embeds, image_of_text)
    outcomes = retrieval_outcomes(image_ranks, text_ranks, image_of_text, k)
    curves = {
        name: [[place, (ranks < place).double().mean().item()] for place in curve_places(len(others))]
        for name, ranks, others in (("text", image_ranks, text_ranks), ("image", text_ranks, image_ranks))
    }
    ranks = {"image_median_rank": text_ranks, "text_median_rank": image_ranks}
    medians = {name: values.median().item() + 1 for name, values in ranks.items()}
    settings = settings_of(model, processor, rows) | {"texts": len(texts), "k": list(k)}
    details = {"recall": curves, **medians}
    return Result(
        dataset or rows.name, "zeroshot_retrieval", name_of(model), means(outcomes), outcomes, details, settings
    )


def as_rows(data: Any) -> Rows:
    """Read a data set, unless it is read already."""
    return data if isinstance(data, Rows) else read_rows(data)


def class_names(rows: Rows, labels: Sequence[Any] | None) -> list[Any]:
    """Return a name for each class of labeled images; raise DataError if labels and classes do not fit."""
    if without := next((row.name for row in rows if row.label is None), None):
        raise DataError(f"{without} has no label: give it one, or leave it out")
    names = list(labels or rows.labels)
    classes = len(rows.labels) or 1 + max(row.label or 0 for row in rows)
    if len(names) != classes:
        raise DataError(f"{rows.name} has {classes} classes, {len(names)} labels are given: name each, in their order")
    return names


def embed_classes(model: Any, processor: Any, labels: Sequence[Any], templates: Sequence[str]) -> Tensor:
    """Embed each class (classes, dim); the prompts of synonyms are averaged like those of templates."""
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
    """Return the recall of each class with images, the worst first, and the most frequent confusions."""
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
    """Return the places at which a recall curve is drawn: 1, 2, 5, 10, 20, ... up to all candidates."""
    places = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    return [place for place in places if place < candidates] + [candidates]


def chosen_templates(rows: Rows, templates: str | Sequence[str] | None) -> list[str]:
    """Return the templates given, else those of the data, else the default one."""
    return as_templates(templates or rows.templates or TEMPLATE)


def prompt_settings(rows: Rows, labels: Sequence[Any] | None, templates: str | Sequence[str] | None) -> dict[str, str]:
    """Return a digest of the class names and templates, by which a saved result is known."""
    prompts = (class_names(rows, labels), chosen_templates(rows, templates))
    return {"prompts": hashlib.sha256(repr(prompts).encode()).hexdigest()[:16]}


def settings_of(model: Any, processor: Any, rows: Rows) -> dict[str, Any]:
    """Return what tells whether a saved result is of the same model and data."""
    return {
        "images": len(rows),
        "data": fingerprint(rows),
        "dtype": str(model.dtype).removeprefix("torch."),
        "probe": image_probe(model, processor)[:PROBE_VALUES].tolist(),
    }


__all__ = [
    "as_rows",
    "class_details",
    "class_names",
    "embed_classes",
    "prompt_settings",
    "retrieval",
    "score",
    "settings_of",
    "zero_shot",
]
