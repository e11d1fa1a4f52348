"""Prompts: labels in templates, and their embeddings (paper section 3.1.4)."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from ..embedding.features import Array, Model, check_list, unit_length
from ..embedding.texts import embed_texts

TEMPLATE = "a photo of a {}."

logger = logging.getLogger(__name__)


def embed_labels(
    model: Model,
    processor: Any,
    labels: Iterable[Any],
    templates: str | Iterable[str],
    **tokenizer_kwargs,
) -> Array:
    """Compute class embeddings (labels, projection_dim) of length 1, float32 on the CPU.

    Of several templates the class embedding is the mean of a label's normalized prompts, normalized again (paper
    section 3.1.4).

    Args:
        model: A CLIP of both towers, or a text tower with its projection.
        processor: Its processor or tokenizer.
        labels: The classes; anything that can be formatted.
        templates: One or several texts with `{}` for the label.
        **tokenizer_kwargs: Options of the tokenizer, such as `truncation`.

    Returns:
        (labels, projection_dim).

    Raises:
        ValueError: There are no labels or no templates, or a template has no place for the label.
    """
    labels, templates = as_labels(labels), as_templates(templates)
    prompts = [template.format(label) for label in labels for template in templates]
    return average_prompts(embed_texts(model, processor, prompts, **tokenizer_kwargs), len(templates))


def average_prompts(embeds: Array, templates: int) -> Array:
    """Average embeddings of prompts (labels * templates, D) over the templates of each label, to length 1 again."""
    embeds = embeds.reshape(-1, templates, embeds.shape[-1])
    # one prompt has length 1 already: to normalize it again would round it
    return unit_length(embeds.mean(1)) if templates > 1 else embeds[:, 0]


def as_labels(labels: Iterable[Any], name: str = "labels") -> list[Any]:
    """Return labels of any iterable as a list; raise ValueError, with `name`, for none or for one text."""
    labels = labels if isinstance(labels, str) else list(labels)
    check_list(name, labels)
    return list(labels)


def as_templates(templates: str | Iterable[str]) -> list[str]:
    """Return one or several templates as a list; raise ValueError unless each has `{}` for the label."""
    templates = [templates] if isinstance(templates, str) else list(templates)
    check_list("templates", templates)
    for template in templates:
        try:
            has_place = template.format("one") != template.format("other")
        except (LookupError, ValueError):  # named fields, or a single brace
            has_place = False
        if not has_place:
            raise ValueError(f"the template {template!r} needs {{}}, and no other braces, where the label goes")
    return templates


def warn_of_one_label(labels: Sequence[Any]) -> None:
    """Log that the softmax over a single label is 1 for any image."""
    if len(labels) == 1:
        logger.warning(
            "%r is the only label and scores 100 %% whatever an image shows: add labels for what else there may be",
            labels[0],
        )


__all__ = ["TEMPLATE", "as_labels", "as_templates", "average_prompts", "embed_labels", "warn_of_one_label"]
