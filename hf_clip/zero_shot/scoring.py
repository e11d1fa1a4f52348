"""Scores of images against class embeddings, shared by the classifier, the pipeline and the evaluations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..embedding.features import Array, Model
from ..exported.model import ExportedCLIP
from .numerics import descending, no_gradients


def check_model(model: Model) -> None:
    """Raise TypeError unless the model compares images with texts by CLIP's scaled cosine."""
    if isinstance(model, ExportedCLIP):
        return
    missing = [name for name in ("get_image_features", "get_text_features", "logit_scale") if not hasattr(model, name)]
    if missing or hasattr(model, "logit_bias"):
        why = f"has no {missing[0]}" if missing else "scores with a bias"
        raise TypeError(f"{type(model).__name__} {why}: zero-shot classification here wants a CLIP with both towers")


def zero_shot_logits(model: Model, image_embeds: Array, class_embeds: Array) -> Array:
    """Compute logits (images, labels), float32, of embeddings of length 1, on the device of `image_embeds`."""
    if isinstance(model, ExportedCLIP):
        return np.exp(model.logit_scale) * image_embeds @ class_embeds.T
    from ..model.modeling_hf_clip_base import contrastive_logits

    with no_gradients(image_embeds):
        class_embeds, logit_scale = class_embeds.to(image_embeds.device), model.logit_scale.to(image_embeds.device)
        return contrastive_logits(image_embeds, class_embeds, logit_scale.float())


def ranked(scores: Array, labels: Sequence[Any], top_k: int | None = None) -> list[dict[str, Any]]:
    """Rank `labels` by one image's `scores` (labels,); equal scores keep the order of the labels."""
    values = scores.tolist()
    return [{"label": labels[place], "score": values[place]} for place in descending(scores)[:top_k]]


__all__ = ["check_model", "ranked", "zero_shot_logits"]
