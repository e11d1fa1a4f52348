"""Semantic deduplication: SemDeDup's rule (arXiv:2303.09540) on stored embeddings.

Images are clustered by spherical k-means. Within each cluster the ones farthest from the centroid come first, and an
image is dropped if its cosine with one before it reaches the threshold, the paper's 1 - epsilon.
"""

import io
from typing import Literal, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..embedding.stores import StoreError
from ..search.duplicates import repeated_rows
from ..search.exact import block_rows
from ..utils.places import Place, writing
from .selected import IMAGE, EmbeddedPart, Selection, iter_part_columns, open_parts, open_target, write_selection

Keep = Literal["far", "near"]
# as faiss, with which the paper clusters: rows of each cluster that centroids are fitted to, and passes over them
SAMPLE, PASSES = 256, 25
# rows of a cluster on average, unless their number is given: comparing all pairs of so many takes a second
CLUSTER_ROWS = 10_000


class Clusters(NamedTuple):
    """Rows by their nearest centroid.

    Args:
        numbers: The cluster of each row (N,).
        similarity: The product of each row with its centroid (N,), float32.
    """

    numbers: np.ndarray
    similarity: np.ndarray


def cluster_count(rows: int) -> int:
    """Return the number of clusters for so many rows."""
    return max(1, round(rows / CLUSTER_ROWS))


def cluster_rows(rows: np.ndarray, clusters: int, seed: int = 0) -> Clusters:
    """Cluster unit vectors (N, dim) by spherical k-means; centroids are fitted to SAMPLE rows for each.

    Args:
        rows: Unit vectors, float32 or float16.
        clusters: The number of clusters; those that end up empty do no harm.
        seed: Seed of the sample and of the first centroids.
    """
    if not 1 <= clusters <= len(rows):
        raise ValueError(f"clusters is {clusters}: give a number from 1 to the {len(rows):,} rows")
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(len(rows))[: SAMPLE * clusters])
    sample = torch.from_numpy(np.asarray(rows[drawn], np.float32))
    centroids = sample[torch.from_numpy(rng.permutation(len(sample))[:clusters])]
    before = None
    for _ in range(PASSES if clusters > 1 else 1):
        numbers, _ = _nearest_centroids(sample, centroids)
        if before is not None and torch.equal(numbers, before):
            break
        before = numbers
        sums = torch.zeros_like(centroids).index_add_(0, numbers, sample)
        lengths = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(lengths > 0, sums / lengths.clamp(min=1e-12), centroids)
    size = block_rows(rows.shape[1])
    found = [
        _nearest_centroids(torch.from_numpy(np.array(rows[start : start + size])).float(), centroids)
        for start in range(0, len(rows), size)
    ]
    numbers, similarity = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return Clusters(numbers, similarity)


def _nearest_centroids(rows: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    similarity, numbers = (rows @ centroids.T).max(1)
    return numbers, similarity


def semantic_duplicates(rows: np.ndarray, threshold: float, clusters: Clusters, keep: Keep = "far") -> np.ndarray:
    """Return True (N,) for each row that is dropped: it reaches the threshold with one before it in its cluster.

    Args:
        rows: Unit vectors (N, dim).
        threshold: The least cosine.
        clusters: The clusters of the rows.
        keep: "far" puts the rows farthest from their centroid first, as the paper does by default; "near" the nearest.
    """
    dropped = np.zeros(len(rows), bool)
    by_cluster = np.argsort(clusters.numbers, kind="stable")
    starts = np.flatnonzero(np.diff(clusters.numbers[by_cluster], prepend=-1))
    for members in tqdm(np.split(by_cluster, starts[1:]), desc="clusters", unit="cluster", delay=2):
        similarity = clusters.similarity[members]
        order = members[np.lexsort((members, similarity if keep == "far" else -similarity))]
        dropped[repeated_rows(rows, threshold, order)] = True
    return dropped


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless the threshold is a cosine that only near vectors have."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold:g}: give a cosine above 0, at most 1")


def drop_duplicates(
    source: str,
    output: str,
    threshold: float,
    *,
    clusters: int | None = None,
    keep: Keep = "far",
    seed: int = 0,
    restart: bool = False,
) -> Selection:
    """Keep the images that are no semantic duplicates of another, in a directory of the same kind.

    All embeddings are in memory at once. A stopped run goes on if it was writing already; else it begins anew, and
    comes to the same rows.

    Args:
        source: A directory of parts, as `hf-clip embed` writes it.
        output: The directory to write.
        threshold: The least cosine of duplicates, the paper's 1 - epsilon.
        clusters: The number of clusters; one for each CLUSTER_ROWS rows unless given. One compares all pairs.
        keep: Which of a cluster's duplicates come first: see `semantic_duplicates`.
        seed: Seed of the clustering.
        restart: Replace another selection in the output.

    Raises:
        StoreError: The source has no embeddings, or the output holds something else.
        ValueError: The threshold is no cosine, or there are more clusters than rows.
    """
    check_threshold(threshold)
    place, settings = open_parts(source)
    rule = {"threshold": threshold, "clusters": clusters, "keep": keep, "seed": seed}
    target = open_target(source, output, rule, restart)
    # the rows to keep are known before the first one is written, and stay until the last one is
    unfinished = target.place / f".kept-{target.digest}.npy"
    kept = _known(unfinished) if target.begun else None
    if kept is None:
        rows = _unit_rows(place, settings["normalize"])
        found = cluster_rows(rows, cluster_count(len(rows)) if clusters is None else clusters, seed)
        kept = ~semantic_duplicates(rows, threshold, found, keep)
        del rows
        target.begin()
        with writing(unfinished) as file:
            np.save(file, kept)
    start = 0

    def choose(part: EmbeddedPart) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        nonlocal start
        start, mask = start + int(part.good.sum()), kept[start : start + int(part.good.sum())]
        return mask, {}

    selection = write_selection(place, target.place, choose)
    unfinished.fs.rm_file(unfinished.path)
    return selection


def _known(unfinished: Place) -> np.ndarray | None:
    """Read the rows to keep that a stopped run has found."""
    if not unfinished.fs.exists(unfinished.path):
        return None
    return np.load(io.BytesIO(unfinished.fs.cat_file(unfinished.path)))


def _unit_rows(place: Place, normalized: bool) -> np.ndarray:
    """Read all embeddings; those of length 1 stay as they are, bit for bit."""
    blocks = []
    for part in iter_part_columns(place, []):
        rows = part.embeds(IMAGE)
        if not normalized:
            rows = (rows / np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)).astype(rows.dtype)
        blocks.append(rows)
    if not sum(map(len, blocks)):
        raise StoreError(f"{place} has no embedding: embed its images first")
    return np.concatenate(blocks)


__all__ = [
    "Clusters",
    "Keep",
    "check_threshold",
    "cluster_count",
    "cluster_rows",
    "drop_duplicates",
    "semantic_duplicates",
]
