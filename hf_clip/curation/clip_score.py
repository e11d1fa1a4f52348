"""Filter image-text pairs by their CLIP score, as DataComp does (arXiv:2304.14108, section 3.3)."""

from typing import NamedTuple

import numpy as np

from ..embedding.parts import WHOLE, Shard
from ..embedding.stores import StoreError
from .selected import TEXT, EmbeddedPart, Selection, iter_part_columns, open_parts, open_target, write_selection

SCORE = "clip_score"


class Filtered(NamedTuple):
    """Outcome of a filter.

    Args:
        selection: Counts of pairs.
        threshold: The least score that was kept.
        without_text: Pairs without a caption, which have no score and are left out.
    """

    selection: Selection
    threshold: float
    without_text: int


def clip_scores(image_embeds: np.ndarray, text_embeds: np.ndarray) -> np.ndarray:
    """Compute the cosine (N,) of each image with its text, in float64, so that no batch and no thread matters."""
    image_embeds, text_embeds = image_embeds.astype(np.float64), text_embeds.astype(np.float64)
    lengths = np.linalg.norm(image_embeds, axis=1) * np.linalg.norm(text_embeds, axis=1)
    return np.einsum("nd,nd->n", image_embeds, text_embeds) / lengths


def top_threshold(scores: np.ndarray, fraction: float) -> float:
    """Return the score that a fraction of the pairs reach, by DataComp's rule.

    Of N scores in falling order that is the one at place int(N * fraction), from 0. All that reach it are kept: one
    more than the fraction says, and whatever is equal.
    """
    place = int(len(scores) * fraction)
    return float(np.sort(scores)[::-1][min(place, len(scores) - 1)])


def check_limits(min_score: float | None, top: float | None) -> None:
    """Raise ValueError unless one of a least score and a fraction is given, and within its range."""
    if (min_score is None) == (top is None):
        raise ValueError("give either a least score or a fraction to keep")
    if min_score is not None and not -1 <= min_score <= 1:
        raise ValueError(f"the least score is {min_score:g}: give a cosine, from -1 to 1")
    if top is not None and not 0 < top <= 1:
        raise ValueError(f"the fraction to keep is {top:g}: give more than 0 and at most 1")


def filter_pairs(
    source: str,
    output: str,
    *,
    min_score: float | None = None,
    top: float | None = None,
    shard: Shard = WHOLE,
    restart: bool = False,
) -> Filtered:
    """Keep the pairs whose image and text are similar enough, with their score in a column `clip_score`.

    Args:
        source: A directory of parts with embeddings of images and texts, as `hf-clip embed --text-column` writes it.
        output: The directory to write, of the same kind. A stopped run goes on.
        min_score: The least cosine.
        top: The fraction of all pairs with the highest scores; give only one of the two.
        shard: The parts that this run writes; the fraction counts all pairs in any case.
        restart: Replace another selection in the output.

    Raises:
        StoreError: The source has no embeddings of texts, or the output holds something else.
        ValueError: Neither or both of `min_score` and `top` are given, or one is out of range.
    """
    check_limits(min_score, top)
    place, settings = open_parts(source)
    if settings.get("text_column") is None:
        raise StoreError(f"{source} has no embeddings of texts: embed it with --text-column")
    target = open_target(source, output, {"min_score": min_score, "top": top}, restart)
    threshold = min_score
    if threshold is None:
        scores = [_scores(part) for part in iter_part_columns(place, [TEXT])]
        known = np.concatenate([each[~np.isnan(each)] for each in scores]) if scores else np.empty(0)
        if not len(known):
            raise StoreError(f"{source} has no pair of an image and a text: check its column of captions")
        threshold = top_threshold(known, float(top or 0))
    without_text = 0

    def choose(part: EmbeddedPart) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        nonlocal without_text
        found = _scores(part)
        without_text += int(np.isnan(found).sum())
        return found >= threshold, {SCORE: found}

    target.begin()
    return Filtered(write_selection(place, target.place, choose, shard), threshold, without_text)


def _scores(part: EmbeddedPart) -> np.ndarray:
    return clip_scores(part.embeds("embedding"), part.embeds(TEXT))


__all__ = ["Filtered", "check_limits", "clip_scores", "filter_pairs", "top_threshold"]
