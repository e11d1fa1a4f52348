"""Recall at k between images and captions, under the names that clip_benchmark uses.

One convention, whoever asks: each caption of an image counts as right for the image, and only its own image counts as
right for a caption. Equal scores rank by index. An image or caption that stands twice in the data is two candidates.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check_finite
from .outcomes import Outcomes, means

RECALL_AT = (1, 5, 10)
# scores computed at once: 1024 images x 1024 texts are 4 MiB; pairs in double precision: 512 of 512 numbers are 2 MiB
IMAGE_BLOCK, TEXT_BLOCK, PAIR_BLOCK = 1024, 1024, 512


def retrieval_metrics(
    image_embeds: Tensor, text_embeds: Tensor, image_of_text: Tensor, *, k: Sequence[int] = RECALL_AT
) -> dict[str, float]:
    """Compute recall at k both ways: of texts that search their image, and of images that search their texts.

    Memory beyond the embeddings is a few MiB, whatever their number.

    Args:
        image_embeds: Embeddings (images, dim).
        text_embeds: Embeddings (texts, dim).
        image_of_text: Image index of each text (texts,).
        k: Numbers of best candidates among which a match is a hit. Equal scores rank by index.

    Returns:
        `image_retrieval_recall@k`, `text_retrieval_recall@k`, and `mean_recall@1` of both where 1 is in `k`.

    Raises:
        ValueError: Shapes disagree, an embedding is NaN or infinite, an index is no image, or an image has no text.

    Example:
        >>> retrieval_metrics(torch.eye(2), torch.eye(2), torch.arange(2), k=[1])
        {'image_retrieval_recall@1': 1.0, 'text_retrieval_recall@1': 1.0, 'mean_recall@1': 1.0}
    """
    image_ranks, text_ranks = retrieval_ranks(image_embeds, text_embeds, image_of_text)
    return with_mean_recall(retrieval_outcomes(image_ranks, text_ranks, image_of_text, k))


def with_mean_recall(outcomes: dict[str, Outcomes]) -> dict[str, float]:
    """Return the metrics of outcomes, and the mean of image and text retrieval at 1 if both are there."""
    metrics = means(outcomes)
    both = [metrics[name] for name in ("image_retrieval_recall@1", "text_retrieval_recall@1") if name in metrics]
    return metrics | ({"mean_recall@1": sum(both) / 2} if len(both) == 2 else {})


def retrieval_outcomes(
    image_ranks: Tensor, text_ranks: Tensor, image_of_text: Tensor, k: Sequence[int]
) -> dict[str, Outcomes]:
    """Return the outcomes of recall at `k` image by image: a bootstrap draws the captions of an image together."""
    if not k or min(k) < 1:
        raise ValueError(f"k is {list(k)}: give numbers from 1 on")
    images = len(image_ranks)
    captions = torch.bincount(image_of_text, minlength=images).numpy(force=True)

    def found(n: int) -> Outcomes:
        hits = torch.bincount(image_of_text, (text_ranks < n).double(), minlength=images)
        return Outcomes.of(hits.numpy(force=True), trials=captions)

    return {f"image_retrieval_recall@{n}": found(n) for n in k} | {
        f"text_retrieval_recall@{n}": Outcomes.of((image_ranks < n).numpy(force=True)) for n in k
    }


@torch.no_grad()
def retrieval_ranks(image_embeds: Tensor, text_embeds: Tensor, image_of_text: Tensor) -> tuple[Tensor, Tensor]:
    """Count the texts before each image's best own text (images,), and the images before each text's own (texts,).

    One matrix product serves both ways, block by block. Its rounding depends on the blocks, so scores that it cannot
    tell apart are computed again in double precision, each in the same way: ranks are the same for any block size, and
    equal embeddings have equal scores.
    """
    _check_pairs(image_embeds, text_embeds, image_of_text)
    images, texts, device = len(image_embeds), len(text_embeds), image_embeds.device
    every_text = torch.arange(texts, device=device)
    text_goals = _products(image_embeds, text_embeds, image_of_text, every_text)
    image_goals = torch.full((images,), -torch.inf, dtype=torch.double, device=device)
    image_goals.scatter_reduce_(0, image_of_text, text_goals, "amax")
    best = torch.where(text_goals == image_goals[image_of_text], every_text, texts)
    text_of_image = torch.full((images,), texts, device=device).scatter_reduce_(0, image_of_text, best, "amin")
    lengths = image_embeds.norm(dim=1).max() * text_embeds.norm(dim=1).max()
    # the bound of the rounding error of a product of `dim` terms, and of the goal as a float
    margin = ((image_embeds.shape[1] + 2) * torch.finfo(image_embeds.dtype).eps / 2 * lengths).double()
    by_image = _Ranks(image_embeds, text_embeds, image_goals, margin, text_of_image, axis=1)
    by_text = _Ranks(image_embeds, text_embeds, text_goals, margin, image_of_text, axis=0)
    work = image_embeds.new_empty(2, IMAGE_BLOCK * TEXT_BLOCK)  # fresh memory for each block takes longer than its use
    for rows, columns in _blocks(images, texts):
        some, others = image_embeds[rows], text_embeds[columns]
        scores, compared = work[:, : len(some) * len(others)].view(2, len(some), len(others))
        torch.mm(some, others.T, out=scores)
        by_image.count(scores, rows, columns, compared)
        by_text.count(scores, rows, columns, compared)
    return by_image.finish(), by_text.finish()


class _Ranks:
    """Count the keys before the own key of each query: texts of images (axis 1), or images of texts (axis 0)."""

    def __init__(
        self, image_embeds: Tensor, text_embeds: Tensor, goals: Tensor, margin: Tensor, owners: Tensor, axis: int
    ):
        self.image_embeds, self.text_embeds, self.axis = image_embeds, text_embeds, axis
        self.goals, self.owners, self.ranks = goals, owners, torch.zeros_like(owners)
        low, high = (goals - margin).to(image_embeds.dtype), (goals + margin).to(image_embeds.dtype)
        self.low, self.high = low.unsqueeze(axis), high.unsqueeze(axis)
        self.near: list[tuple[Tensor, Tensor]] = []

    def count(self, scores: Tensor, rows: slice, columns: slice, compared: Tensor) -> None:
        """Count the certain pairs in a block of scores, and collect the uncertain ones.

        `compared` is overwritten: PyTorch compares into floats, and sums them, in a quarter of the time of bools, and
        the counts are exact.
        """
        queries = rows if self.axis else (slice(None), columns)
        above = torch.gt(scores, self.high[queries], out=compared)
        self.ranks[rows if self.axis else columns] += above.sum(self.axis, dtype=torch.float).long()
        certain = above.bool()
        places = _places(torch.ge(scores, self.low[queries], out=compared).bool().bitwise_xor_(certain))
        self.near.append((places // scores.shape[1] + rows.start, places % scores.shape[1] + columns.start))
        if sum(len(row) for row, _ in self.near) >= PAIR_BLOCK:
            self._decide()

    def finish(self) -> Tensor:
        """Return the ranks."""
        if self.near:
            self._decide()
        return self.ranks

    def _decide(self) -> None:
        """Compute the collected pairs again in double precision, and count them."""
        row, column = (torch.cat(parts) for parts in zip(*self.near, strict=True))
        self.near.clear()
        query, key = (row, column) if self.axis else (column, row)
        exact, goal = _products(self.image_embeds, self.text_embeds, row, column), self.goals[query]
        before = (exact > goal) | ((exact == goal) & (key < self.owners[query]))
        self.ranks.index_add_(0, query, before.long())


def _blocks(images: int, texts: int) -> Iterator[tuple[slice, slice]]:
    for start in range(0, images, IMAGE_BLOCK):
        for other in range(0, texts, TEXT_BLOCK):
            yield slice(start, start + IMAGE_BLOCK), slice(other, other + TEXT_BLOCK)


def _places(found: Tensor) -> Tensor:
    """Return the flat places of True; on the CPU NumPy finds them in a tenth of the time."""
    if found.device.type != "cpu":
        return found.flatten().nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(found.numpy()))


def _products(image_embeds: Tensor, text_embeds: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply pairs of rows in double precision; a pair's product does not depend on the other pairs."""
    parts = [
        image_embeds.index_select(0, row).double().mul_(text_embeds.index_select(0, column)).sum(1)
        for row, column in zip(rows.split(PAIR_BLOCK), columns.split(PAIR_BLOCK), strict=True)
    ]
    return torch.cat(parts)


def _check_pairs(image_embeds: Tensor, text_embeds: Tensor, image_of_text: Tensor) -> None:
    if image_embeds.ndim != 2 or text_embeds.ndim != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(
            f"image_embeds are {tuple(image_embeds.shape)}, text_embeds {tuple(text_embeds.shape)}: give (N, D), (M, D)"
        )
    if image_of_text.shape != text_embeds.shape[:1]:
        raise ValueError(f"{len(text_embeds)} texts have {len(image_of_text)} image indices: give one for each text")
    check_finite("image_embeds", image_embeds)
    check_finite("text_embeds", text_embeds)
    images = len(image_embeds)
    if not len(image_of_text) or image_of_text.min() < 0 or image_of_text.max() >= images:
        raise ValueError(f"image_of_text must hold indices of the {images} images: check the pairs")
    if len(without := (torch.bincount(image_of_text, minlength=images) == 0).nonzero().flatten()):
        raise ValueError(f"image {without[0]} has no text: drop it or give it a caption")


def compute_retrieval_metrics(prediction: Any) -> dict[str, float]:
    """Compute retrieval metrics of a CLIP in transformers' Trainer, as its `compute_metrics`.

    Args:
        prediction: An EvalPrediction whose predictions are the text and image embeddings of pairs, as HFCLIPModel
            gives them; row n of one belongs to row n of the other.

    Returns:
        The metrics of `retrieval_metrics`.

    Raises:
        ValueError: The predictions are not two arrays of equal shape.

    Example:
        >>> trainer = Trainer(model, args, eval_dataset=pairs, compute_metrics=compute_retrieval_metrics)
    """
    found = prediction.predictions
    if not isinstance(found, tuple | list) or len(found) != 2 or found[0].shape != found[1].shape:
        shapes = [getattr(part, "shape", type(part).__name__) for part in found]
        raise ValueError(f"predictions are {shapes}: evaluate a CLIP that gives text and image embeddings of pairs")
    text_embeds, image_embeds = (torch.as_tensor(part).float() for part in found)
    return retrieval_metrics(image_embeds, text_embeds, torch.arange(len(text_embeds)))


__all__ = [
    "RECALL_AT",
    "compute_retrieval_metrics",
    "retrieval_metrics",
    "retrieval_outcomes",
    "retrieval_ranks",
    "with_mean_recall",
]
