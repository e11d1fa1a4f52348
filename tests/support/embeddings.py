"""Embeddings without a model: classes as cones of unit vectors, and directories of parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from hf_clip.embedding.parts import PartStore
from hf_clip.model.modeling_hf_clip_base import normalize


def cones(counts: list[int], dim: int = 16, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw embeddings (N, dim) of classes with these counts, their classes (N,), and the axes (classes, dim)."""
    generator = torch.Generator().manual_seed(seed)
    axes = normalize(torch.randn(len(counts), dim, generator=generator))
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    drawn = torch.randn(len(targets), dim, generator=generator)
    return normalize(axes[targets] + noise * drawn), targets, axes


def write_parts(
    folder: Path, images: np.ndarray, texts: np.ndarray | None = None, part_rows: int = 10, normalized: bool = True
) -> Path:
    """Write embeddings as `hf-clip embed` does into a directory; a row of NaN is an image that failed."""
    settings: dict[str, Any] = {"model": "m", "dtype": "float32", "normalize": normalized, "dim": images.shape[1]}
    settings |= {"probe": np.nan_to_num(images[0]).tolist(), "row_dtype": str(images.dtype), "text_column": None}
    names = [f"{number:06}.png" for number in range(len(images))]
    batch = {"key": names, "path": names, "version": ["1"] * len(names), "embedding": images}
    batch["error"] = ["no image" if row else None for row in np.isnan(images).any(1)]
    columns = {}
    if texts is not None:
        settings["text_column"] = "caption"
        columns["caption"] = pa.string()
        batch |= {"caption": [f"caption of {name}" for name in names], "text_embedding": texts}
    with PartStore(str(folder), settings, 1e-3, columns=columns) as store:
        for start in range(0, len(names), part_rows):
            store.append({name: values[start : start + part_rows] for name, values in batch.items()})
            store.flush()
    return folder


def kept_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a directory of parts by their keys."""
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))).to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}
