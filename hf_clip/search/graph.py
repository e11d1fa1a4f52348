"""Approximate nearest rows by usearch's HNSW graph, re-ranked with the stored rows."""

from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..utils.packages import require
from .exact import best, rescored

CONNECTIVITY, EXPANSION_ADD = 32, 200
RERANKED = 4
ADDED_AT_ONCE = 10_000
SOUGHT_AMONG = 16


def new_graph(dim: int) -> Any:
    """Make an empty graph."""
    require("usearch", "search", "an HNSW index")
    from usearch.index import Index

    return Index(
        ndim=dim, metric="ip", dtype="f16", connectivity=CONNECTIVITY, expansion_add=EXPANSION_ADD, expansion_search=1
    )


def open_graph(path: Path, copy: bool = False) -> Any:
    """Map a graph from its file, or read a copy that can grow."""
    require("usearch", "search", "an HNSW index")
    from usearch.index import Index

    try:
        graph = Index.restore(str(path), view=not copy)
    except (RuntimeError, ValueError) as error:
        raise OSError(f"{path} is no graph of usearch ({error}): build the index again") from error
    if graph is None:
        raise FileNotFoundError(f"there is no {path}: build the index again")
    graph.expansion_search = 1
    return graph


def grow(graph: Any, rows: np.ndarray) -> None:
    """Insert the rows that the graph does not hold yet: those from its length on. Each of them is found by itself.

    Threads that insert at the same time may leave a row that no other links to, some 2 to 9 of 10,000: such rows are
    inserted again by one thread.
    """
    with tqdm(desc="graph", total=len(rows), initial=len(graph), unit="row", delay=2) as bar:
        for start in range(len(graph), len(rows), ADDED_AT_ONCE):
            block = np.asarray(rows[start : start + ADDED_AT_ONCE], np.float32)
            numbers = np.arange(start, start + len(block))
            graph.add(numbers, block)
            lost = ~_found(graph, numbers, block)
            graph.remove(numbers[lost])
            graph.add(numbers[lost], block[lost], threads=1)
            bar.update(len(block))


def _found(graph: Any, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # usearch expands its search to as many candidates as are asked for
    return (graph.search(rows, SOUGHT_AMONG).keys == numbers[:, None]).any(axis=1)


def drop(graph: Any, kept: np.ndarray) -> None:
    """Remove the rows that are not `kept`, a truth value for each row of the graph, and number the others anew."""
    graph.remove(np.flatnonzero(~kept))
    old = np.flatnonzero(kept)
    new = np.arange(len(old))
    graph.rename(old[old != new], new[old != new])  # in order: each number is free when its turn comes


def nearest_in_graph(
    graph: Any, rows: np.ndarray, queries: np.ndarray, k: int, expansion: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find about the `k` nearest rows of each query, as `exact.nearest` does.

    The graph holds rows of float16; the best RERANKED times `k` of its `expansion` candidates are ranked anew by the
    stored rows.
    """
    k = min(k, len(rows))
    wanted = min(max(expansion, RERANKED * k), len(rows))
    found = [_nearest_to_one(graph, rows, query, k, wanted) for query in np.asarray(queries, np.float32)]
    return np.stack([scores for scores, _ in found]), np.stack([numbers for _, numbers in found])


def _nearest_to_one(
    graph: Any, rows: np.ndarray, query: np.ndarray, k: int, wanted: int
) -> tuple[np.ndarray, np.ndarray]:
    # usearch expands its search to as many candidates as are asked for, and gives the nearest first
    numbers = graph.search(query, wanted).keys[: RERANKED * k].astype(np.int64)
    return best(rescored(rows[numbers], query), numbers, k)


__all__ = ["drop", "grow", "nearest_in_graph", "new_graph", "open_graph"]
