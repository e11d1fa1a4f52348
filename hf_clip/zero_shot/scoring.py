"""Scores of images against class embeddings, shared by the classifier, the pipeline and the evaluations."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..model.modeling_hf_clip_base import contrastive_logits


def check_model(model: PreTrainedModel) -> None:
    """Raise TypeError unless the model compares images with texts by CLIP's scaled cosine."""
    missing = [name for name in ("get_image_features", "get_text_features", "logit_scale") if not hasattr(model, name)]
    if missing or hasattr(model, "logit_bias"):
        why = f"has no {missing[0]}" if missing else "scores with a bias"
        raise TypeError(f"{type(model).__name__} {why}: zero-shot classification here wants a CLIP with both towers")


@torch.no_grad()
def zero_shot_logits(model: PreTrainedModel, image_embeds: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
    """Compute logits (images, labels), float32, of embeddings of length 1, on the device of `image_embeds`."""
    class_embeds, logit_scale = class_embeds.to(image_embeds.device), model.logit_scale.to(image_embeds.device)
    return contrastive_logits(image_embeds, class_embeds, logit_scale.float())


def ranked(scores: torch.Tensor, labels: Sequence[Any], top_k: int | None = None) -> list[dict[str, Any]]:
    """Rank `labels` by one image's `scores` (labels,); equal scores keep the order of the labels."""
    scores, places = scores.sort(descending=True, stable=True)
    return [
        {"label": labels[place], "score": score}
        for score, place in zip(scores[:top_k].tolist(), places[:top_k].tolist(), strict=True)
    ]


__all__ = ["check_model", "ranked", "zero_shot_logits"]
