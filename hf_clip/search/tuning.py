"""The candidates that an approximate search needs, measured on texts.

Texts lie apart from images in CLIP's space, where a search finds less: one that is tuned on images misses what texts
look for.
"""

from collections.abc import Callable

import numpy as np
from tqdm.auto import tqdm

from .exact import nearest

EXPANSIONS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
MEASURED_AT = 10

# queries (Q, dim), k and candidates to cosines and row numbers (Q, k)
Search = Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray]]


def tune(search: Search, rows: np.ndarray, queries: np.ndarray, wanted: float) -> tuple[int, float]:
    """Find the smallest of EXPANSIONS with which the recall at 10 reaches `wanted`.

    Args:
        search: Finds about the nearest rows of queries, by a number of candidates.
        rows: The stored rows (N, dim).
        queries: Unit vectors (Q, dim), embeddings of texts.
        wanted: The recall to reach.

    Returns:
        The expansion and the recall with it; of the largest expansion if none reaches it.
    """
    expected = nearest(rows, queries, MEASURED_AT)[1]
    measured = 0.0
    for expansion in tqdm(EXPANSIONS, desc="tuning", unit="setting", delay=2, leave=False):
        measured = recall(search(queries, MEASURED_AT, expansion)[1], expected)
        if measured >= wanted or expansion >= len(rows):
            break
    return expansion, measured


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of `expected` rows (Q, k) that are among the found (Q, k)."""
    hits = [np.isin(wanted, got).mean() for got, wanted in zip(found, expected, strict=True)]
    return float(np.mean(hits))


__all__ = ["MEASURED_AT", "Search", "recall", "tune"]
