"""Nearest rows by a scan of 8-bit codes, re-ranked with the stored rows.

A code holds each number of a row in 8 bits, between the least and the largest of its column. A query reads all codes, a
quarter of the bytes of float32 rows, and the rows of the best candidates. `tune` measures on texts how many that takes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..utils.packages import require
from .exact import best, block_rows, rescored

LEVELS = 127
# products of so many codes are held at once, in float64
SCANNED_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False)
class Codes:
    """Rows in 8 bits: a row is about `center + scale * values`.

    Args:
        values: (N, dim) int8.
        center: (dim,) float32, the same in all products with a query, so that no scan needs it.
        scale: (dim,) float32.
    """

    values: np.ndarray
    center: np.ndarray
    scale: np.ndarray


def write_codes(rows: np.ndarray, path: Path) -> Codes:
    """Write the codes of unit vectors (N, dim) as a .npy."""
    size = block_rows(rows.shape[1])
    blocks = [slice(start, start + size) for start in range(0, len(rows), size)]
    least = np.min([rows[block].min(0) for block in blocks], 0).astype(np.float32)
    most = np.max([rows[block].max(0) for block in blocks], 0).astype(np.float32)
    center, scale = (least + most) / 2, (most - least) / 2 / LEVELS
    step = np.where(scale, scale, 1)  # a column of equal numbers has codes of 0
    values = np.lib.format.open_memmap(path, "w+", np.int8, rows.shape)
    for block in blocks:
        values[block] = np.clip(np.rint((rows[block].astype(np.float32) - center) / step), -LEVELS, LEVELS)
    values.flush()
    return Codes(values, center, scale)


def nearest_by_codes(
    codes: Codes, rows: np.ndarray, queries: np.ndarray, k: int, candidates: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find about the `k` nearest rows of each query, as `exact.nearest` does.

    Of all rows, the `candidates` with the largest products of codes are ranked anew by the stored rows.
    """
    require("numkong", "search", "an int8 index")
    k = min(k, len(rows))
    wanted = min(max(candidates, k), len(rows))
    found = [_nearest_to_one(codes, rows, query, k, wanted) for query in np.asarray(queries, np.float32)]
    return np.stack([scores for scores, _ in found]), np.stack([numbers for _, numbers in found])


def _nearest_to_one(
    codes: Codes, rows: np.ndarray, query: np.ndarray, k: int, wanted: int
) -> tuple[np.ndarray, np.ndarray]:
    from numkong import cdist

    weights = query * codes.scale
    weights = np.rint(weights * (LEVELS / (np.abs(weights).max() or 1))).astype(np.int8)
    products, numbers = np.empty(0), np.empty(0, np.int64)
    for start in range(0, len(rows), SCANNED_AT_ONCE):
        block = np.asarray(cdist(weights[None], codes.values[start : start + SCANNED_AT_ONCE], "dot"))[0]
        products = np.concatenate([products, block])
        numbers = np.concatenate([numbers, np.arange(start, start + len(block))])
        chosen = np.argpartition(-products, min(wanted, len(products)) - 1)[:wanted]
        products, numbers = products[chosen], numbers[chosen]
    numbers.sort()  # as they lie on the disk
    return best(rescored(rows[numbers], query), numbers, k)


__all__ = ["Codes", "nearest_by_codes", "write_codes"]
