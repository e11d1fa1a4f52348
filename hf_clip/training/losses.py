"""CLIP's contrastive loss (paper figure 3), over all processes, with duplicates as positives."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..model.modeling_hf_clip_base import contrastive_logits, contrastive_loss


class _Gather(torch.autograd.Function):
    """All-gather rows; the gradient of a row is the sum of its gradients on all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return torch.cat(_all(rows.contiguous()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def _all(rows: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return parts


def is_distributed() -> bool:
    """Return True if several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all processes, in the order of their ranks, with gradients to each process.

    Args:
        tensor: (N, ...), of the same shape on all processes.

    Returns:
        (N * processes, ...); the tensor itself if there is one process.

    Raises:
        ValueError: The processes hold different numbers of rows.

    Example:
        >>> everyone = gather_with_grad(model.encode_image(pixel_values))
    """
    if not is_distributed():
        return tensor
    counts = [int(count) for count in _all(torch.tensor([len(tensor)], device=tensor.device))]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the processes hold {', '.join(map(str, counts))} rows, which must be equally many: set "
            "dataloader_drop_last=True"
        )
    return _Gather.apply(tensor)


def clip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    valid: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """Compute the symmetric contrastive loss of a batch of pairs, optionally over all processes.

    Rows whose ids are equal, of the image or of the text, belong to each other as the pair itself does: the target is
    spread evenly over them. Without ids the i-th image belongs to the i-th text alone.

    With `gather`, each process compares its own rows with those of all processes. The value is the loss of the whole
    batch, and the mean of the processes' gradients, which DistributedDataParallel computes, is its exact gradient.

    Args:
        image_embeds: (N, D), normalized.
        text_embeds: (N, D), normalized.
        logit_scale: The logarithm of the scale, a scalar.
        image_ids: (N,) int64; equal numbers are equal images.
        text_ids: (N,) int64; equal numbers are equal texts.
        valid: (N,) bool; False leaves a pair out.
        gather: Compare with the rows of all processes, which must hold equally many.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: No pair is valid, `logit_scale` is sharded, or the processes hold different numbers of pairs.

    Example:
        >>> loss = clip_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale, gather=True)
    """
    if hasattr(logit_scale, "full_tensor"):
        raise ValueError("logit_scale is sharded: call fully_shard(model, reshard_after_forward=False)")
    gather = gather and is_distributed()
    count, first = len(image_embeds), 0
    everyone = [image_embeds, text_embeds, image_ids, text_ids, valid]
    if gather:
        first = dist.get_rank() * count
        everyone = [None if tensor is None else gather_with_grad(tensor) for tensor in everyone]
    images, texts, all_image_ids, all_text_ids, all_valid = everyone
    rows = slice(first, first + count)
    positives = _positives(rows, len(images), image_embeds.device, all_image_ids, all_text_ids)
    total = len(images)
    if all_valid is not None and not all_valid.all():
        total = int(all_valid.sum())
        if not total:
            raise ValueError("no pair of the batch is valid: check the images of the data set")
        positives = _pairs(rows, len(images), image_embeds.device) if positives is None else positives
    else:
        all_valid = None
    per_image = contrastive_logits(image_embeds, texts, logit_scale)
    if not gather and positives is None:
        return contrastive_loss(per_image)
    per_text = contrastive_logits(images, text_embeds, logit_scale).t() if gather else per_image.t()
    loss = _directed(per_image, positives, first, all_valid) + _directed(per_text, positives, first, all_valid)
    # scaled so that the mean over processes is the mean over the whole batch
    loss = loss / 2 * ((dist.get_world_size() if gather else 1) / total)
    if gather:
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        loss = loss + (mean / dist.get_world_size() - loss.detach())
    return loss


def _directed(logits: Tensor, positives: Tensor | None, first: int, valid: Tensor | None) -> Tensor:
    """Sum the cross-entropy of rows of logits (n, N), which belong to the pairs from number `first` on."""
    if valid is not None:
        logits = logits.masked_fill(~valid, -torch.inf)
    if positives is None:
        targets = torch.arange(first, first + len(logits), device=logits.device)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    scores = logits.log_softmax(-1)
    if valid is not None:
        positives = positives & valid
        kept = valid[first : first + len(logits)]
        scores, positives = scores[kept], positives[kept]
    # masked before the sum, as 0 * -inf is NaN
    chosen = scores.masked_fill(~positives, 0).sum(-1) / positives.sum(-1)
    return -chosen.sum()


def _pairs(rows: slice, total: int, device: torch.device) -> Tensor:
    return torch.eye(total, dtype=torch.bool, device=device)[rows]


def _positives(
    rows: slice, total: int, device: torch.device, image_ids: Tensor | None, text_ids: Tensor | None
) -> Tensor | None:
    """Return the mask (n, N) of the positives of each row, or None if each row has only its own pair."""
    same = None
    for ids in (image_ids, text_ids):
        if ids is not None and len(ids.unique()) < len(ids):
            equal = ids[rows, None] == ids
            same = equal if same is None else same | equal
    return same


__all__ = ["clip_loss", "gather_with_grad", "is_distributed"]
