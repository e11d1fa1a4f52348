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

    Rows with equal ids, of the image or of the text, are positives of each other: the target is spread evenly over
    them, as in supervised contrastive learning. So the loss of a row with n positives is at least log n, which
    `loss_floor` computes, and among exactly equal texts the gradient is that of the pair alone. Without ids the i-th
    image belongs to the i-th text alone.

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


@torch.no_grad()
def loss_floor(image_ids: Tensor, text_ids: Tensor, valid: Tensor | None = None, *, gather: bool = False) -> Tensor:
    """Compute the least value that `clip_loss` can have with duplicates: the mean of log n over rows of n positives.

    Args:
        image_ids: (N,) int64; equal numbers are equal images.
        text_ids: (N,) int64; equal numbers are equal texts.
        valid: (N,) bool; False leaves a pair out.
        gather: Use the pairs of all processes.

    Returns:
        The floor, a scalar; 0 without duplicates.
    """
    valid = torch.ones_like(image_ids, dtype=torch.bool) if valid is None else valid
    image_ids, text_ids, valid = (gather_with_grad(ids) if gather else ids for ids in (image_ids, text_ids, valid))
    positives = _positives(slice(None), len(image_ids), image_ids.device, image_ids[valid], text_ids[valid])
    zero = torch.zeros((), device=image_ids.device)
    return zero if positives is None else positives.sum(-1).float().log().mean()


def class_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    valid: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """Compute the cross-entropy of images over the prompts of all classes.

    Args:
        logits: (N, classes), scaled similarities of images and class prompts.
        targets: (N,) int64, the class of each image.
        weights: (classes,); the weight of each class's images. Equal weights unless given.
        smoothing: The share of the target that is spread evenly over all classes.
        valid: (N,) bool; False leaves an image out.
        gather: Average over the images of all processes, so that the mean of their gradients is exact.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: No image is valid.
    """
    weights = None if weights is None else weights.to(logits)
    losses = torch.nn.functional.cross_entropy(
        logits, targets, weight=weights, label_smoothing=smoothing, reduction="none"
    )
    counted = torch.ones_like(losses) if weights is None else weights[targets]
    if valid is not None:
        # multiplied out, a loss of an unreadable image would still pass on NaN
        losses, counted = losses.masked_fill(~valid, 0), counted.masked_fill(~valid, 0)
    total, processes = counted.sum(), 1
    if gather and is_distributed():
        dist.all_reduce(total)
        processes = dist.get_world_size()
    if not total > 0:
        raise ValueError("no image of the batch is valid: check the images of the data set")
    return losses.sum() * processes / total


def multilabel_loss(logits: Tensor, targets: Tensor, *, valid: Tensor | None = None, gather: bool = False) -> Tensor:
    """Compute the binary cross-entropy of images with each class, where an image may show several.

    As in `siglip_loss`, each batch uses the bias that minimizes its own loss, as the checkpoints have none.

    Args:
        logits: (N, classes), scaled similarities of images and class prompts.
        targets: (N, classes) float, 1 where the image shows the class.
        valid: (N,) bool; False leaves an image out.
        gather: Use the images of all processes, which must hold equally many, so that the mean of their gradients is
            exact.

    Returns:
        The loss, a scalar: the mean over images of the sum over classes.

    Raises:
        ValueError: No image is valid, or the processes hold different numbers of images.
    """
    gather = gather and is_distributed()
    keep = torch.ones(len(logits), dtype=torch.bool, device=logits.device) if valid is None else valid
    everyone: list[Tensor] = [logits.detach(), targets, keep]
    if gather:
        everyone = [gather_with_grad(tensor) for tensor in everyone]
    scores, labels, counted = everyone
    if not counted.any():
        raise ValueError("no image of the batch is valid: check the images of the data set")
    bias = _sigmoid_bias(scores[counted], labels[counted].sum())
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits + bias, targets, reduction="none").sum(1)
    return losses.masked_fill(~keep, 0).sum() * (dist.get_world_size() if gather else 1) / counted.sum()


def siglip_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    valid: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """Compute SigLIP's loss (Zhai et al. 2023): the binary cross-entropy of each image with each text.

    SigLIP trains a bias, which CLIP's checkpoints do not have. Here each batch uses the bias that minimizes its own
    loss: predicted and true positives are then equally many, and as the derivative with respect to the bias is zero
    there, the gradients of embeddings and scale are those of a bias that has converged. Scores of the trained model are
    CLIP's cosines still.

    Args:
        image_embeds: (N, D), normalized.
        text_embeds: (N, D), normalized.
        logit_scale: The logarithm of the scale, a scalar.
        image_ids: (N,) int64; equal numbers are equal images, which share their texts.
        text_ids: (N,) int64; equal numbers are equal texts.
        valid: (N,) bool; False leaves a pair out.
        gather: Compare with the rows of all processes, which must hold equally many.

    Returns:
        The loss, a scalar: the sum over all pairings divided by the number of images.

    Raises:
        ValueError: No pair is valid, or the processes hold different numbers of pairs.
    """
    gather = gather and is_distributed()
    count = len(image_embeds)
    first = dist.get_rank() * count if gather else 0
    rows, everyone = slice(first, first + count), [image_embeds, text_embeds, image_ids, text_ids, valid]
    if gather:
        everyone = [None if tensor is None else gather_with_grad(tensor) for tensor in everyone]
    images, texts, all_image_ids, all_text_ids, all_valid = everyone
    device, total = image_embeds.device, len(images)
    keep = torch.ones(total, dtype=torch.bool, device=device) if all_valid is None else all_valid
    if not keep.any():
        raise ValueError("no pair of the batch is valid: check the images of the data set")
    # the bias needs the scores of all pairings, on every process
    labels = _positives(slice(None), total, device, all_image_ids, all_text_ids)
    labels = _pairs(slice(None), total, device) if labels is None else labels
    counted = keep[:, None] & keep
    with torch.no_grad():
        bias = _sigmoid_bias(contrastive_logits(images, texts, logit_scale)[counted], labels[counted].sum())
    scores = contrastive_logits(image_embeds, texts, logit_scale) + bias
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        scores, labels[rows].to(scores.dtype), reduction="none"
    )
    loss = losses.masked_fill(~counted[rows], 0).sum() / keep.sum()
    if not gather:
        return loss
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return loss * dist.get_world_size() + (mean - loss.detach() * dist.get_world_size())


def _sigmoid_bias(scores: Tensor, positives: Tensor) -> Tensor:
    """Find the bias at which the probabilities of all scores sum to the number of positives, by bisection."""
    low, high = -scores.max() - 20, -scores.min() + 20
    for _ in range(50):
        middle = (low + high) / 2
        above = (scores + middle).sigmoid().sum() > positives
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


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


__all__ = [
    "class_loss",
    "clip_loss",
    "gather_with_grad",
    "is_distributed",
    "loss_floor",
    "multilabel_loss",
    "siglip_loss",
]
