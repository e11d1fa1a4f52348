"""Groups of images that are nearly the same."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from .exact import block_rows, rescored


class Group(NamedTuple):
    """An image and later ones that are nearly the same.

    Args:
        first: The row of the first image.
        others: The rows of the others, in order.
        scores: Their cosines with the first.
    """

    first: int
    others: list[int]
    scores: list[float]


def find_duplicates(rows: np.ndarray, threshold: float, graph: Any = None) -> list[Group]:
    """Group each image with all later images whose cosine with it reaches `threshold`, none twice.

    Every image of a group is that near to its first image, so all but the first may go. Without a graph all pairs are
    compared; with one, the NEIGHBORS nearest rows of each.

    Args:
        rows: Unit vectors (N, dim).
        threshold: The least cosine.
        graph: The graph of an HNSW index.
    """
    leaders = np.full(len(rows), -1)
    pairs = _pairs_in_graph(rows, threshold, graph) if graph is not None else _pairs(rows, threshold, leaders)
    for first, others in pairs:
        free = others[leaders[others] < 0]
        if leaders[first] < 0 and len(free):
            leaders[free] = first
    return _groups(rows, leaders)


NEIGHBORS, GRAPH_EXPANSION = 64, 128


def _pairs(rows: np.ndarray, threshold: float, leaders: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each free row, block by block in order, with later rows near it; `leaders` is filled in the meantime."""
    size = block_rows(rows.shape[1])
    starts = range(0, len(rows), size)
    # pairs of blocks, which take the time
    with tqdm(desc="pairs", total=len(starts) * (len(starts) + 1) // 2, unit="block", delay=2, leave=False) as bar:
        for start in starts:
            block = _block(rows, start, size)
            # within the block first: whoever has a leader there leads nobody
            yield from _near(block, block, start, start, threshold)
            bar.update()
            free = np.flatnonzero(leaders[start : start + size] < 0)
            for later in range(start + size, len(rows), size):
                bar.update()
                if len(free) and (leaders[later : later + size] < 0).any():
                    yield from _near(block[free], _block(rows, later, size), start, later, threshold, free)


def _near(
    block: torch.Tensor, later: torch.Tensor, start: int, later_start: int, threshold: float, numbers: Any = None
) -> Iterator[tuple[int, np.ndarray]]:
    near = (block @ later.T >= threshold).numpy()
    for place in np.flatnonzero(near.any(1)):
        first = start + int(place if numbers is None else numbers[place])
        others = later_start + np.flatnonzero(near[place])
        if len(others := others[others > first]):
            yield first, others


def _block(rows: np.ndarray, start: int, size: int) -> torch.Tensor:
    return torch.from_numpy(np.array(rows[start : start + size])).float()


def _pairs_in_graph(rows: np.ndarray, threshold: float, graph: Any) -> Iterator[tuple[int, np.ndarray]]:
    from .graph import nearest_in_graph

    for row in tqdm(range(len(rows)), desc="rows", unit="row", delay=2, leave=False):
        query = np.asarray(rows[row : row + 1], np.float32)
        scores, found = nearest_in_graph(graph, rows, query, NEIGHBORS, GRAPH_EXPANSION)
        others = np.sort(found[0][(scores[0] >= threshold) & (found[0] > row)])
        if len(others):
            yield row, others


def _groups(rows: np.ndarray, leaders: np.ndarray) -> list[Group]:
    others = np.flatnonzero(leaders >= 0)
    others = others[np.argsort(leaders[others], kind="stable")]
    firsts, starts = np.unique(leaders[others], return_index=True)
    groups = []
    for first, members in zip(firsts, np.split(others, starts[1:]), strict=True) if len(others) else ():
        scores = rescored(np.asarray(rows[members]), np.asarray(rows[first]))
        groups.append(Group(int(first), members.tolist(), scores.tolist()))
    return groups


__all__ = ["Group", "find_duplicates"]
