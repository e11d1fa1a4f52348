"""Groups of images that are nearly the same, and the choice of the one to keep."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.images import ImageRef
from .exact import ROUNDING, block_rows

# neighbors that a graph is asked for; a row that has SATURATED near ones may have any number, and is compared with all
NEIGHBORS, GRAPH_EXPANSION, SATURATED = 64, 128, 16
# cosines of one image, embedded in two batches, differ from 1 by less
SAME_ROUNDING = 1e-6
FILE_THREADS = 8


class DuplicateGroup(NamedTuple):
    """An image to keep and images nearly the same.

    Args:
        keeper: The row of the image to keep.
        others: The rows of the others, in order.
        scores: Their cosines with the keeper.
    """

    keeper: int
    others: list[int]
    scores: list[float]


def find_duplicates(
    rows: np.ndarray, threshold: float, graph: Any = None, order: Sequence[int] | None = None
) -> list[DuplicateGroup]:
    """Group each image with all images after it whose cosine with it reaches `threshold`; no image is in two groups.

    Every image of a group reaches the threshold with its keeper, not only with another image: a group is not a chain.
    Without a graph all pairs are compared. With one, each row is compared with its NEIGHBORS nearest rows, and with all
    rows if many of these are near.

    Args:
        rows: Unit vectors (N, dim).
        threshold: The least cosine.
        graph: The graph of an HNSW index.
        order: Row numbers by preference, the ones to keep first; rows that are left out are ignored. All rows in
            their order unless given.
    """
    chosen = np.arange(len(rows)) if order is None else np.asarray(order, np.int64)
    leaders = np.full(len(chosen), -1)
    if len(chosen):
        ranked = _Ranked(rows, chosen)
        pairs = _pairs(ranked, threshold, leaders) if graph is None else _graph_pairs(ranked, threshold, leaders, graph)
        for first, others in pairs:
            free = others[leaders[others] < 0]
            if leaders[first] < 0 and len(free):
                leaders[free] = first
    return _groups(rows, chosen, leaders)


def repeated_rows(rows: np.ndarray, threshold: float, order: Sequence[int]) -> np.ndarray:
    """Return the rows (R,) whose cosine with a row before them reaches `threshold`, whether that one is kept or not.

    This is SemDeDup's rule: a chain of near rows leaves its first one alone, where `find_duplicates` compares each with
    one that is kept.

    Args:
        rows: Unit vectors (N, dim).
        threshold: The least cosine.
        order: Row numbers by preference, the ones to keep first.
    """
    chosen = np.asarray(order, np.int64)
    ranked, repeated = _Ranked(rows, chosen), np.zeros(len(chosen), bool)
    for _, others in _pairs(ranked, threshold, np.full(len(chosen), -1)):
        repeated[others] = True
    return chosen[repeated]


class _Ranked:
    """Rows in the order of preference; places are positions in this order."""

    def __init__(self, rows: np.ndarray, order: np.ndarray):
        self.rows, self.order = rows, order
        self.in_order = bool((np.diff(order) == 1).all()) and (not len(order) or order[0] == 0)

    def __len__(self) -> int:
        return len(self.order)

    def block(self, start: int, stop: int) -> torch.Tensor:
        found = self.rows[start:stop] if self.in_order else self.rows[self.order[start:stop]]
        return torch.from_numpy(np.array(found)).float()

    def near(self, place: int, candidates: np.ndarray, threshold: float) -> np.ndarray:
        """Select the `candidates` (places) whose cosine with the row at `place` reaches the threshold, in float64."""
        cosines = cosines_with(self.rows[self.order[candidates]], self.rows[self.order[place]])
        return candidates[cosines >= threshold - SAME_ROUNDING]


def cosines_with(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return the cosines (N,) of rows with one row in float64; rows of float16 are unit vectors only up to rounding."""
    rows, row = np.asarray(rows, np.float64), np.asarray(row, np.float64)
    return rows @ row / (np.linalg.norm(rows, axis=1) * np.linalg.norm(row))


def _pairs(ranked: _Ranked, threshold: float, leaders: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each free place with later places near it, block by block; the caller fills `leaders` in the meantime."""
    size = block_rows(ranked.rows.shape[1])
    starts = range(0, len(ranked), size)
    # pairs of blocks take the time
    with tqdm(desc="pairs", total=len(starts) * (len(starts) + 1) // 2, unit="block", delay=2, leave=False) as bar:
        for start in starts:
            block = ranked.block(start, start + size)
            # within the block first: an image that joins a group here leads none
            yield from _near(ranked, block, block, start, start, threshold)
            bar.update()
            free = np.flatnonzero(leaders[start : start + size] < 0)
            for later in range(start + size, len(ranked), size):
                bar.update()
                if len(free) and (leaders[later : later + size] < 0).any():
                    others = ranked.block(later, later + size)
                    yield from _near(ranked, block[free], others, start, later, threshold, free)


def _near(
    ranked: _Ranked,
    block: torch.Tensor,
    later: torch.Tensor,
    start: int,
    later_start: int,
    threshold: float,
    numbers: Any = None,
) -> Iterator[tuple[int, np.ndarray]]:
    # float32 products and vectors of float16 are off by this: float64 decides
    near = (block @ later.T >= threshold - ROUNDING - _length_error(ranked.rows)).numpy()
    for place in np.flatnonzero(near.any(1)):
        first = start + int(place if numbers is None else numbers[place])
        others = later_start + np.flatnonzero(near[place])
        others = ranked.near(first, others[others > first], threshold)
        if len(others):
            yield first, others


def _length_error(rows: np.ndarray) -> float:
    return 2e-3 if rows.dtype == np.float16 else 0.0


def _graph_pairs(
    ranked: _Ranked, threshold: float, leaders: np.ndarray, graph: Any
) -> Iterator[tuple[int, np.ndarray]]:
    from .graph import nearest_in_graph

    place_of = np.full(len(ranked.rows), -1)
    place_of[ranked.order] = np.arange(len(ranked))
    for place in tqdm(range(len(ranked)), desc="rows", unit="row", delay=2, leave=False):
        if leaders[place] >= 0:
            continue
        row = ranked.order[place]
        query = np.asarray(ranked.rows[row : row + 1], np.float32)
        _, found = nearest_in_graph(graph, ranked.rows, query, NEIGHBORS, GRAPH_EXPANSION)
        candidates = place_of[found[0]]
        near = ranked.near(place, candidates[candidates >= 0], threshold)
        if len(near) >= min(SATURATED, len(ranked)):
            near = _near_of_all(ranked, place, threshold)
        others = np.sort(near[near > place])
        if len(others):
            yield place, others


def _near_of_all(ranked: _Ranked, place: int, threshold: float) -> np.ndarray:
    size = block_rows(ranked.rows.shape[1])
    row = ranked.block(place, place + 1)[0]
    least = threshold - ROUNDING - _length_error(ranked.rows)
    likely = [
        start + np.flatnonzero((ranked.block(start, start + size) @ row >= least).numpy())
        for start in range(0, len(ranked), size)
    ]
    return ranked.near(place, np.concatenate(likely), threshold)


def _groups(rows: np.ndarray, order: np.ndarray, leaders: np.ndarray) -> list[DuplicateGroup]:
    groups = []
    for leader in np.unique(leaders[leaders >= 0]):
        members, keeper = np.sort(order[np.flatnonzero(leaders == leader)]), int(order[leader])
        scores = cosines_with(rows[members], rows[keeper])
        groups.append(DuplicateGroup(keeper, members.tolist(), scores.tolist()))
    return sorted(groups, key=lambda group: group.keeper)


class FileFacts(NamedTuple):
    """Facts of an image's file by which the one to keep is chosen.

    Args:
        identity: The same for links and hard links to one file; None where there is no file.
        pixels: Width times height; 0 where the image cannot be opened.
        modified: Seconds since 1970; infinite where there is no file.
    """

    identity: tuple[int, int] | None
    pixels: int
    modified: float


def read_file_facts(sources: Sequence[ImageRef]) -> list[FileFacts]:
    """Read size and time of images, from the header of each file; an image that cannot be read has no facts."""

    def facts(source: ImageRef) -> FileFacts:
        try:
            stat = os.stat(source.source) if source.span is None else None
        except (OSError, ValueError):  # an address, or a file that is gone
            stat = None
        try:
            with source.peek() as image:
                pixels = image.width * image.height
        except Exception:  # plugins of Pillow raise arbitrary exceptions for damaged files
            pixels = 0
        identity = None if stat is None else (stat.st_dev, stat.st_ino)
        return FileFacts(identity, pixels, float("inf") if stat is None else stat.st_mtime)

    with ThreadPoolExecutor(FILE_THREADS) as pool:
        found = pool.map(facts, sources)
        return list(tqdm(found, desc="files", total=len(sources), unit="file", delay=2, leave=False))


def preferred_order(facts: Sequence[FileFacts]) -> list[int]:
    """Order images by preference: most pixels, then oldest, then first; of links to one file only one is listed."""
    order = sorted(range(len(facts)), key=lambda row: (-facts[row].pixels, facts[row].modified, row))
    seen: set[tuple[int, int]] = set()
    chosen = []
    for row in order:
        identity = facts[row].identity
        if identity is None or identity not in seen:
            chosen.append(row)
        if identity is not None:
            seen.add(identity)
    return chosen


__all__ = [
    "DuplicateGroup",
    "FileFacts",
    "find_duplicates",
    "preferred_order",
    "read_file_facts",
    "repeated_rows",
]
