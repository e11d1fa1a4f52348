"""A cutoff for a query without labeled images, a heuristic: keep the images that stand out from the collection.

Cosines of CLIP lie in a band that moves with the query, so that one cutoff does not serve two queries. Here scores are
standardized: those of texts that fit anywhere are subtracted, then the median over the collection, and the difference
is divided by the spread. Images that exceed a normal distribution's tail stand out, where of those kept at most the
share CHANCE would be there by chance (Benjamini and Hochberg, 1995).
"""

import math
from typing import Literal

import numpy as np

Cutoff = Literal["auto"] | float

CHANCE = 0.1
SAMPLED_ROWS = 20_000
LEAST_ROWS = 20
# the median of the absolute deviations of a normal distribution is this part of its standard deviation
MAD_OF_NORMAL = 0.6745


def check_cutoff(cutoff: Cutoff) -> None:
    """Raise ValueError unless a cutoff is "auto" or a positive number."""
    if cutoff != "auto" and not (isinstance(cutoff, int | float) and cutoff > 0):
        raise ValueError(
            f"cutoff is {cutoff!r}: choose auto, or the most images that may be found by chance, such as 3"
        )


def expected_by_chance(
    rows: np.ndarray, query: np.ndarray, bank: np.ndarray, found: np.ndarray, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Estimate how many images of the collection would score as high as each found one by chance.

    Args:
        rows: Unit vectors of the collection (N, dim), such as a memory map; at most SAMPLED_ROWS of them are read.
        query: A unit vector (dim,).
        bank: Unit vectors of texts that fit anywhere (M, dim).
        found: Row numbers of the found images (K,).
        allowed: True for each of the N rows that are the collection; all of them unless given.

    Returns:
        Numbers of images (K,), float64.

    Raises:
        ValueError: The collection is too small, or its images have the same score.
    """
    numbers = np.arange(len(rows)) if allowed is None else np.flatnonzero(allowed)
    if len(numbers) < LEAST_ROWS:
        raise ValueError(
            f"{len(numbers)} images are too few to tell which stand out: search {LEAST_ROWS} or more, or give min_score"
        )
    direction = query.astype(np.float64) - bank.mean(0, dtype=np.float64)
    sample = numbers[np.linspace(0, len(numbers) - 1, min(SAMPLED_ROWS, len(numbers))).astype(np.int64)]
    scores = np.asarray(rows[sample], np.float64) @ direction
    median = np.median(scores)
    spread = np.median(np.abs(scores - median)) / MAD_OF_NORMAL
    if spread < 1e-9:
        raise ValueError("half of the images or more have the same score: there is nothing that they stand out from")
    standing = (np.asarray(rows[found], np.float64) @ direction - median) / spread
    return len(numbers) * np.array([math.erfc(value / math.sqrt(2)) / 2 for value in standing])


def stand_out(chance: np.ndarray, cutoff: Cutoff = "auto") -> np.ndarray:
    """Return True for each image that stands out (K,), given the numbers expected by chance.

    Args:
        chance: The numbers that `expected_by_chance` gives (K,).
        cutoff: The most images that may be there by chance; with "auto" as many images are kept, beginning with the
            least expected, as keep the share of chance among them at CHANCE.
    """
    if cutoff != "auto":
        return chance <= cutoff
    order = np.argsort(chance, kind="stable")
    fits = np.flatnonzero(chance[order] <= CHANCE * np.arange(1, len(chance) + 1))
    kept = np.zeros(len(chance), bool)
    kept[order[: fits[-1] + 1 if len(fits) else 0]] = True
    return kept


__all__ = ["CHANCE", "Cutoff", "check_cutoff", "expected_by_chance", "stand_out"]
