"""What an evaluation reports: the loss and the recall over all pairs at once, and watched zero-shot accuracy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.images import UnreadableImageError
from ..data.read import read_rows
from ..data.rows import DataError, Row, Rows
from ..embedding.images import embed_images
from ..embedding.texts import embed_texts
from ..model.modeling_hf_clip_base import contrastive_logits
from ..zero_shot.classifier import ZeroShotClassifier
from ..zero_shot.prompts import TEMPLATE

logger = logging.get_logger(__name__)

RECALL_AT = (1, 5, 10)
CHUNK = 1024


@dataclass
class ZeroShotSet:
    """Watch the zero-shot accuracy on images while a model trains, so that forgetting shows.

    Args:
        rows: What `hf_clip.data.read.read_rows` returns for images with labels, or a path to read.
        templates: Texts with `{}` for the label; those of the data set, else "a photo of a {}.", unless given.
        batch_size: Images per pass through the model.

    Raises:
        DataError: An image has no label, or the data set can't be read.

    Example:
        >>> trainer = CLIPTrainer(model, processor, args, train_dataset=train, watch={"pets": ZeroShotSet("pets")})
    """

    rows: Any
    templates: str | Sequence[str] | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Read the rows if they are a path."""
        if not isinstance(self.rows, Rows):
            self.rows = read_rows(self.rows)
        if any(row.label is None for row in self.rows):
            raise DataError(f"{self.rows.name} has images without a label: a watched set needs one for each")
        self.templates = self.templates or self.rows.templates or TEMPLATE

    def accuracy(self, model: PreTrainedModel, processor: Any) -> float:
        """Return the share of images whose label scores highest; unreadable images are left out."""
        classifier = ZeroShotClassifier(model, processor, self.rows.labels, self.templates or TEMPLATE)
        found: list[Row] = []
        with _some_found(found, self.rows):
            logits = classifier.logits(_images(self.rows, found), batch_size=self.batch_size)
        return (logits.argmax(-1) == torch.tensor([row.label for row in found])).float().mean().item()


def _images(rows: Rows, found: list[Row]) -> Iterator[Any]:
    """Yield the images that can be read, and note their rows."""
    for row in rows:
        try:
            image = row.open()
        except UnreadableImageError as error:
            logger.warning_once(f"skipped: {error}")
            continue
        found.append(row)
        yield image


@contextmanager
def _some_found(found: list[Row], rows: Rows) -> Iterator[None]:
    """Say so if no image can be read: for what embeds them there are none."""
    try:
        yield
    except ValueError as error:
        if found:
            raise
        raise DataError(f"no image of {rows.name} can be read: check the paths of the data set") from error


def evaluate_pairs(model: PreTrainedModel, processor: Any, rows: Rows, batch_size: int = 16) -> dict[str, float]:
    """Measure the loss and the recall over all captions of all images; unreadable images are left out."""
    found: list[Row] = []
    with _some_found(found, rows):
        image_embeds = embed_images(model, processor, _images(rows, found), batch_size=batch_size)
    pairs = [(place, text) for place, row in enumerate(found) for text in row.texts]
    if not pairs:
        raise DataError(f"{rows.name} has no captions: give images with captions, or with labels")
    places = torch.tensor([place for place, _ in pairs])
    texts = [text for _, text in pairs]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    text_ids = torch.tensor([numbers[text] for text in texts])
    text_embeds = embed_texts(model, processor, texts, truncation=True)
    return pair_metrics(image_embeds[places], text_embeds, model.logit_scale.detach().float().cpu(), places, text_ids)


@torch.no_grad()
def pair_metrics(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, image_ids: Tensor, text_ids: Tensor
) -> dict[str, float]:
    """Measure the loss and the recall over pairs, each image against all texts and each text against all images.

    Equal images and equal texts count as hits of each other. Of equal scores the earlier row ranks first.

    Args:
        image_embeds: (N, D), normalized.
        text_embeds: (N, D), normalized.
        logit_scale: The logarithm of the scale.
        image_ids: (N,) int64.
        text_ids: (N,) int64.

    Returns:
        `loss`, `text_retrieval_recall@k` (texts found for an image), `image_retrieval_recall@k`, `mean_recall@1`.
    """
    losses = [
        _row_losses(queries, keys, logit_scale, image_ids, text_ids)
        for queries, keys in ((image_embeds, text_embeds), (text_embeds, image_embeds))
    ]
    metrics = {"loss": sum(loss.mean().item() for loss in losses) / 2}
    images, image_of = image_ids.unique(return_inverse=True)
    texts, text_of = text_ids.unique(return_inverse=True)
    image_embeds = image_embeds[firsts(image_of, len(images))]  # each image once, as retrieval counts them
    of_texts = [
        _best_ranks(text_embeds[rows] @ image_embeds.T, _related(text_of[rows], text_of, image_of, len(images)))
        for rows in _chunks(len(text_embeds))
    ]
    of_images = [
        _best_ranks(
            image_embeds[rows] @ text_embeds.T,
            _related(torch.arange(len(images))[rows], image_of, text_of, len(texts))[:, text_of],
        )
        for rows in _chunks(len(images))
    ]
    for name, ranks in (("text", torch.cat(of_images)), ("image", torch.cat(of_texts))):
        metrics |= {f"{name}_retrieval_recall@{k}": (ranks < k).double().mean().item() for k in RECALL_AT}
    metrics["mean_recall@1"] = (metrics["text_retrieval_recall@1"] + metrics["image_retrieval_recall@1"]) / 2
    return metrics


def firsts(group_of: Tensor, groups: int) -> Tensor:
    """Return the first row of each group (groups,), given the group of each row."""
    rows = torch.arange(len(group_of), device=group_of.device)
    return torch.full_like(rows[:groups], len(rows)).scatter_reduce(0, group_of, rows, "amin")


def _chunks(total: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, total, CHUNK))


def _row_losses(queries: Tensor, keys: Tensor, logit_scale: Tensor, image_ids: Tensor, text_ids: Tensor) -> Tensor:
    parts = []
    for rows in _chunks(len(queries)):
        positives = (image_ids[rows, None] == image_ids) | (text_ids[rows, None] == text_ids)
        scores = contrastive_logits(queries[rows], keys, logit_scale).log_softmax(-1)
        parts.append(-scores.masked_fill(~positives, 0).sum(-1) / positives.sum(-1))
    return torch.cat(parts).double()


def _related(queries: Tensor, query_of: Tensor, key_of: Tensor, keys: int) -> Tensor:
    """Return which keys (n, keys) come in a pair with each query, given the query and the key of each pair."""
    pairs = (queries[:, None] == query_of).float()
    return torch.zeros(len(queries), keys).index_add_(1, key_of, pairs) > 0


def _best_ranks(scores: Tensor, positives: Tensor) -> Tensor:
    """Count the keys before the best positive of each query; of equal scores the earlier one ranks first."""
    best = scores.masked_fill(~positives, -torch.inf).argmax(-1, keepdim=True)
    own = scores.gather(1, best)
    return ((scores > own) | ((scores == own) & (torch.arange(scores.shape[1]) < best))).sum(1)


__all__ = ["RECALL_AT", "ZeroShotSet", "evaluate_pairs", "firsts", "pair_metrics"]
