"""The contrastive loss over a whole data set, where training sees one batch at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..model.modeling_hf_clip_base import contrastive_logits

LOSS_ROWS = 1024  # of which scores with all pairs are computed at once


@torch.no_grad()
def contrastive_loss_of_all(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, image_ids: Tensor, text_ids: Tensor
) -> float:
    """Compute CLIP's loss with all pairs of a data set in one batch; equal images or texts are positives.

    Args:
        image_embeds: (N, D), normalized.
        text_embeds: (N, D), normalized.
        logit_scale: The logarithm of the scale.
        image_ids: (N,) int64; equal numbers are equal images.
        text_ids: (N,) int64; equal numbers are equal texts.

    Returns:
        The mean of the losses of images and of texts.
    """
    ways = ((image_embeds, text_embeds), (text_embeds, image_embeds))
    losses = [_row_losses(queries, keys, logit_scale, image_ids, text_ids) for queries, keys in ways]
    return sum(loss.mean().item() for loss in losses) / 2


def first_places(group_of: Tensor, groups: int) -> Tensor:
    """Return the first row of each group (groups,), given the group of each row."""
    rows = torch.arange(len(group_of), device=group_of.device)
    return torch.full_like(rows[:groups], len(rows)).scatter_reduce(0, group_of, rows, "amin")


def _chunks(total: int) -> Iterator[slice]:
    return (slice(start, start + LOSS_ROWS) for start in range(0, total, LOSS_ROWS))


def _row_losses(queries: Tensor, keys: Tensor, logit_scale: Tensor, image_ids: Tensor, text_ids: Tensor) -> Tensor:
    parts = []
    for rows in _chunks(len(queries)):
        positives = (image_ids[rows, None] == image_ids) | (text_ids[rows, None] == text_ids)
        scores = contrastive_logits(queries[rows], keys, logit_scale).log_softmax(-1)
        parts.append(-scores.masked_fill(~positives, 0).sum(-1) / positives.sum(-1))
    return torch.cat(parts).double()


__all__ = ["contrastive_loss_of_all", "first_places"]
