"""Exact nearest rows by blocks of memory-mapped rows, in bounded memory."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
from tqdm.auto import tqdm

# eight megabytes of float32: rows are converted and multiplied within the cache, and threads seldom wait
BLOCK_VALUES = 1 << 21
# one query is multiplied with rows as they lie, as many blocks at once: threads wait for each other after each
DIRECT_BLOCKS = 256
# more than products of unit vectors are off by: in float32, and of rows and a query in float16 summed in float32
ROUNDING, HALF_ROUNDING = 1e-5, 1e-3


def nearest(
    rows: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` rows of the largest products with each query; equal ones in the order of rows.

    Products of float32, or of float16 for one query, select candidates, and products of float64 order them, so neither
    blocks nor threads matter.

    Args:
        rows: Unit vectors (N, dim), float32 or float16, such as a memory map.
        queries: Unit vectors (Q, dim), float32.
        k: How many rows to find.
        allowed: True for each of the N rows that may be found; all of them unless given.

    Returns:
        Products (Q, k) float64 and row numbers (Q, k) int64; k is at most the number of allowed rows.
    """
    k = min(k, len(rows) if allowed is None else int(allowed.sum()))
    scores, found = [np.empty(0) for _ in queries], [np.empty(0, np.int64) for _ in queries]
    if k:
        size = block_rows(rows.shape[1])
        is_direct = len(queries) == 1 and (rows.dtype != np.float16 or _reads_float16())
        products_of = _OneProduct(queries[0], size, allowed is None) if is_direct else _Products(queries, size)
        for start, block, numbers in _blocks(rows, allowed, products_of.block_rows):
            products, rounding = products_of(block)  # (B, Q)
            likely = products.max(0) >= [kth[k - 1] - rounding if len(kth) == k else -np.inf for kth in scores]
            for query in np.flatnonzero(likely):
                places = _candidates(products[:, query], k, rounding)
                exact = rescored(block[places], queries[query])
                chosen = start + places if numbers is None else numbers[places]
                scores[query], found[query] = best(
                    np.concatenate([scores[query], exact]), np.concatenate([found[query], chosen]), k
                )
    return np.stack(scores), np.stack(found)


def _reads_float16() -> bool:
    """Return True if a package that multiplies float16 is there; importing torch takes longer than most searches."""
    return find_spec("numkong") is not None or sys.modules.get("torch") is not None


class _OneProduct:
    """Products of blocks of rows with one query, and the most that they are off by.

    Rows of float16 are read as they lie: by numkong, or by torch where only that is there.
    """

    def __init__(self, query: np.ndarray, size: int, rows_stay: bool):
        self.query = np.ascontiguousarray(query, np.float32)
        self.block_rows = size * DIRECT_BLOCKS if rows_stay else size

    def __call__(self, block: np.ndarray) -> tuple[np.ndarray, float]:
        if block.dtype != np.float16:
            return (block @ self.query)[:, None], ROUNDING
        half = self.query.astype(np.float16)
        if find_spec("numkong"):
            from numkong import cdist

            return np.asarray(cdist(half[None], block, "dot"))[0, :, None], HALF_ROUNDING
        import torch

        return torch.mv(torch.from_numpy(block), torch.from_numpy(half)).float().numpy()[:, None], HALF_ROUNDING


class _Products:
    """Products of blocks of rows with several queries, and the most that they are off by."""

    def __init__(self, queries: np.ndarray, size: int):
        self.queries, self.block_rows = np.ascontiguousarray(queries, np.float32), size
        self._torch = sys.modules.get("torch")
        if self._torch is not None:  # filled anew with each block
            self._buffer = self._torch.empty(size, queries.shape[1])

    def __call__(self, block: np.ndarray) -> tuple[np.ndarray, float]:
        if self._torch is None:
            return np.asarray(block, np.float32) @ self.queries.T, ROUNDING
        # PyTorch converts float16 ten times as fast as NumPy, into memory that is there already
        values = self._buffer[: len(block)].copy_(self._torch.from_numpy(np.asarray(block)))
        return (values @ self._torch.from_numpy(self.queries).T).numpy(), ROUNDING


def best(scores: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Order by score, then by row, and keep the first `k`."""
    order = np.lexsort((found, -scores))[:k]
    return scores[order], found[order]


def rescored(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the products (N,) of rows and one query in float64."""
    return np.einsum("nd,d->n", rows.astype(np.float64), query.astype(np.float64))


def block_rows(dim: int) -> int:
    """Return how many rows a block has."""
    return max(1, BLOCK_VALUES // dim)


def _blocks(
    rows: np.ndarray, allowed: np.ndarray | None, size: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    if allowed is None:
        starts = tqdm(range(0, len(rows), size), desc="rows", unit="block", delay=2, leave=False)
        yield from ((start, rows[start : start + size], None) for start in starts)
    else:
        numbers = np.flatnonzero(allowed)
        for start in range(0, len(numbers), size):
            chosen = numbers[start : start + size]
            yield start, rows[chosen], chosen


def _candidates(products: np.ndarray, k: int, rounding: float) -> np.ndarray:
    """Return the places that may be among the best `k` of a block."""
    if len(products) <= k:
        return np.arange(len(products))
    kth = np.partition(products, len(products) - k)[len(products) - k]
    return np.flatnonzero(products >= kth - rounding)


__all__ = ["best", "block_rows", "nearest", "rescored"]
