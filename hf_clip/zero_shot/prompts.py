"""Prompts: labels in templates, and their embeddings (paper section 3.1.4)."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..embedding.features import check_list
from ..embedding.texts import embed_texts
from ..model.modeling_hf_clip_base import normalize as unit_length

TEMPLATE = "a photo of a {}."


def embed_labels(
    model: PreTrainedModel,
    processor: Any,
    labels: Sequence[Any],
    templates: str | Sequence[str],
    **tokenizer_kwargs,
) -> torch.Tensor:
    """Compute class embeddings (labels, projection_dim) of length 1, float32 on the CPU.

    Of several templates the mean of a label's normalized prompts, normalized again (paper section 3.1.4).
    Raises ValueError for no labels, no templates, and a template without a place for the label.
    """
    templates = as_templates(templates)
    check_list("labels", labels)
    prompts = [template.format(label) for label in labels for template in templates]
    embeds = embed_texts(model, processor, prompts, **tokenizer_kwargs).unflatten(0, (-1, len(templates)))
    # one prompt has length 1 already: to normalize it again would round it
    return unit_length(embeds.mean(1)) if len(templates) > 1 else embeds[:, 0]


def as_templates(templates: str | Sequence[str]) -> list[str]:
    """One or several templates as a list. Raises ValueError unless each has `{}` for the label."""
    templates = [templates] if isinstance(templates, str) else templates
    check_list("templates", templates)
    for template in templates:
        try:
            has_place = template.format("one") != template.format("other")
        except (LookupError, ValueError):  # named fields, or a single brace
            has_place = False
        if not has_place:
            raise ValueError(f"the template {template!r} needs {{}}, and no other braces, where the label goes.")
    return list(templates)


__all__ = ["TEMPLATE", "as_templates", "embed_labels"]
