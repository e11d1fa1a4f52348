"""An index of images' embeddings in a directory: exact, or approximate by a graph."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data.tars import read_member
from ..embedding.identity import OtherModelError, image_probe, name_of, same_model, text_probe
from ..embedding.images import embed_images
from ..embedding.parts import OWN
from ..embedding.reading import Embeddings, open_embeddings
from ..embedding.texts import embed_texts
from ..utils.files import new_directory
from ..utils.packages import require
from . import exact, graph
from .filters import Where, allowed_rows
from .tuning_texts import TUNING_TEXTS

SETTINGS_FILE, ROWS_FILE, COLUMNS_FILE, GRAPH_FILE = "settings.json", "rows.npy", "columns.arrow", "graph.usearch"
Weighted = Any  # one or several items, or pairs (item, weight)


class SearchError(ValueError):
    """A directory that is no index, or embeddings that cannot become one."""


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Search images by texts, images, and sums of both.

    An index is a directory with the embeddings as unit vectors, which are memory-mapped, with the columns of the
    images, and with what identifies the model. `kind="exact"` compares a query with every row; `kind="hnsw"` searches a
    graph, for millions of images, and ranks what it finds by the stored rows.

    Args:
        path: The directory.
        settings: What `build` stored: kind, model, probes, and the recall that was measured.
        rows: Unit vectors (N, dim), float32 or float16.
        columns: An Arrow table with `path` and the columns that the source of the images has.
        graph: The graph of an HNSW index, else None.
        model: A CLIP, or its text tower with projection where only texts are searched for.
        processor: Its processor or, for a text tower, tokenizer.

    Example:
        >>> index = ImageIndex.build("features.parquet", "photos.index", model, processor)
        >>> index.search("a red car", minus="snow", k=5)
    """

    path: Path
    settings: Mapping[str, Any]
    rows: np.ndarray
    columns: Any
    graph: Any
    model: PreTrainedModel
    processor: Any

    @classmethod
    def build(
        cls,
        embeddings: str | os.PathLike,
        output: str | os.PathLike,
        model: PreTrainedModel,
        processor: Any,
        *,
        kind: Literal["exact", "hnsw"] = "exact",
        dtype: Literal["float32", "float16"] = "float32",
        queries: Sequence[str] | None = None,
        recall: float = 0.95,
        folder: str | os.PathLike | None = None,
    ) -> "ImageIndex":
        """Build an index of the output of `hf-clip embed`, or bring an index up to date.

        Where `output` is an index of the same kind already, its rows stay, new ones are inserted, and those of images
        that are gone or have changed are removed; if that is more than half of them, it is built anew.

        Args:
            embeddings: A .safetensors, .npy or .parquet, or a directory of parts.
            output: The directory of the index; replaced when the new one is whole.
            model: The CLIP that made the embeddings, with both towers.
            processor: Its processor.
            kind: "exact" or "hnsw" (needs usearch).
            dtype: The dtype of the stored rows; float16 halves them, and changes scores by about 1e-4.
            queries: Texts on which an HNSW index is tuned; common prompts unless given.
            recall: The share of the 10 nearest images that an HNSW index should find on `queries`.
            folder: The folder that relative paths count from; what the embeddings say unless given.

        Returns:
            The index, opened.

        Raises:
            OtherModelError: The embeddings are another model's.
            StoreError: There are no embeddings there.
        """
        if kind not in ("exact", "hnsw"):
            raise ValueError(f"kind is {kind!r}: choose exact or hnsw")
        source, output = open_embeddings(os.fspath(embeddings)), Path(output)
        _check(image_probe(model, processor), source.settings, "probe", model)
        settings = {
            "kind": kind,
            "model": source.settings["model"],
            "dtype": source.settings["dtype"],
            "probe": source.settings["probe"],
            "text_probe": text_probe(model, processor)[0].tolist(),
            "folder": os.fspath(folder) if folder is not None else source.settings.get("folder"),
        }
        old = _Old.at(output, settings, np.dtype(dtype))
        with new_directory(output) as work:
            kept = _write_rows(work, source, old, np.dtype(dtype))
            settings["inserted"] = _count(work) - int(kept.sum())
            if kind == "hnsw":
                texts = embed_texts(model, processor, list(queries or TUNING_TEXTS), truncation=True).numpy()
                settings |= _write_graph(work, output, kept, texts, recall)
            (work / SETTINGS_FILE).write_text(json.dumps(settings))
        return cls.load(output, model, processor)

    @classmethod
    def load(cls, path: str | os.PathLike, model: PreTrainedModel, processor: Any) -> "ImageIndex":
        """Open an index; rows and graph are mapped, not read.

        Args:
            path: The directory.
            model: The CLIP that made the embeddings, or its text tower.
            processor: Its processor or tokenizer.

        Returns:
            The index.

        Raises:
            OtherModelError: The index is another model's.
            ValueError: There is no index.
        """
        path = Path(path)
        settings = read_index_settings(path)
        _check(text_probe(model, processor)[0], settings, "text_probe", model)
        return cls(path, settings, *open_rows(path), model, processor)

    def __len__(self) -> int:
        return len(self.rows)

    def search(
        self, text: Weighted = (), *, image: Weighted = (), minus: Weighted = (), k: int = 20, where: Where = None
    ) -> list[dict[str, Any]]:
        """Find the images that are most like a text, an image, or a sum of several.

        Args:
            text: A text, or several, each alone or as (text, weight).
            image: An image as `embed_images` takes it, or a list of several, each alone or as (image, weight).
            minus: Texts to subtract, as `text`.
            k: How many images to find.
            where: Conditions on columns that an image has to meet, such as [("year", ">=", 2020)]; they are compared
                with every row.

        Returns:
            For each image, the best first: `path` and the other columns, `score` (cosine), and `row`.

        Raises:
            ValueError: There is nothing to search for, or a column is not known.
        """
        query = self.embed_query(text, image, minus)
        scores, found = self.nearest(query[None], k, where)
        columns = self.columns.take(found[0]).to_pylist()
        return [
            {**values, "score": float(score), "row": int(row)}
            for values, score, row in zip(columns, scores[0], found[0], strict=True)
        ]

    def source_of(self, path: str) -> str | Callable[[], bytes]:
        """Return where an image that was found lies, or what reads it from a tar.

        Args:
            path: The `path` of a hit.

        Returns:
            The path below the folder of the images, or a function that gives the bytes.
        """
        full = os.path.join(self.settings.get("folder") or "", path)
        return partial(read_member, full) if ".tar:" in path and not os.path.exists(full) else full

    def nearest(self, queries: np.ndarray, k: int, where: Where = None) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` nearest rows of each of the unit vectors `queries` (Q, dim).

        Args:
            queries: Embeddings of the same model.
            k: How many rows to find.
            where: Conditions on columns; rows that meet them are compared exactly in any kind of index.

        Returns:
            Cosines (Q, k) float64 and row numbers (Q, k), the best first and equal ones in the order of rows.

        Raises:
            ValueError: `k` is less than 1, or a column is not known.
        """
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least 1")
        if self.graph is None or where:
            allowed = allowed_rows(self.columns, where) if where else None
            return exact.nearest(self.rows, np.asarray(queries, np.float32), k, allowed)
        return graph.nearest_in_graph(self.graph, self.rows, queries, k, self.settings["expansion"])

    def embed_query(self, text: Weighted = (), image: Weighted = (), minus: Weighted = ()) -> np.ndarray:
        """Embed a weighted sum of texts and images as a unit vector (dim,).

        Args:
            text: Texts, as in `search`.
            image: Images, as in `search`.
            minus: Texts to subtract.

        Returns:
            The vector, float32.

        Raises:
            ValueError: There is nothing to embed, or the sum is zero.
        """
        texts = [*_weighted(text), *((value, -weight) for value, weight in _weighted(minus))]
        images = _weighted(image)
        parts = []
        if texts:
            parts.append(_sum(embed_texts(self.model, self.processor, [value for value, _ in texts]), texts))
        if images:
            if not hasattr(self.model, "get_image_features"):
                raise ValueError("only the text tower is loaded: load the index with the whole CLIP to search by image")
            parts.append(_sum(embed_images(self.model, self.processor, [value for value, _ in images]), images))
        if not parts:
            raise ValueError("there is nothing to search for: give a text or an image")
        total = torch.stack(parts).sum(0)
        if not total.norm() > 1e-6:
            raise ValueError("the texts and images cancel each other: change their weights")
        return (total / total.norm()).numpy()


def _sum(embeds: torch.Tensor, items: Sequence[tuple[Any, float]]) -> torch.Tensor:
    return torch.tensor([weight for _, weight in items], dtype=torch.float32) @ embeds


def _weighted(items: Weighted) -> list[tuple[Any, float]]:
    """List the items, each with its weight."""
    if not isinstance(items, list | tuple) or _is_pair(items):
        items = [items]
    return [item if _is_pair(item) else (item, 1.0) for item in items if item is not None]


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], int | float)


def _check(probe: torch.Tensor, settings: Mapping[str, Any], name: str, model: PreTrainedModel) -> None:
    """Raise OtherModelError unless `probe` is that of the settings."""
    known = torch.tensor(settings[name])
    if not same_model(probe, known, same_precision=False):
        raise OtherModelError(
            f"the embeddings were made with another model ({settings['model']}), not {name_of(model)}: search with the "
            "model that made them"
        )


def read_index_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Read the settings of an index.

    Raises:
        SearchError: There is no index, or it is broken.
    """
    try:
        return json.loads((Path(path) / SETTINGS_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise SearchError(f"there is no index at {path}: make one with hf-clip index") from None
    except ValueError as error:
        raise SearchError(f"the index {path} is broken ({error}): build it again") from error


def open_rows(path: str | os.PathLike) -> tuple[np.ndarray, Any, Any]:
    """Map the rows, columns and, for HNSW, the graph of an index; no model is needed."""
    path = Path(path)
    kind = read_index_settings(path)["kind"]
    tree = graph.open_graph(path / GRAPH_FILE) if kind == "hnsw" else None
    # copy on write: PyTorch warns of maps that cannot be written
    return np.load(path / ROWS_FILE, mmap_mode="c"), _read_columns(path), tree


def _read_columns(path: Path) -> Any:
    require("pyarrow", "search", "an index")
    import pyarrow as pa

    with pa.memory_map(str(path / COLUMNS_FILE)) as source:
        return pa.ipc.open_file(source).read_all()


# --- building ---------------------------------------------------------------------------------------------------------


@dataclass
class _Old:
    """An index that is to be brought up to date."""

    keys: dict[str, int]
    rows: np.ndarray
    columns: Any

    @classmethod
    def at(cls, path: Path, settings: Mapping[str, Any], dtype: np.dtype) -> "_Old | None":
        """Open the index at `path` if its rows can stay: it is of the same kind, dtype and model."""
        try:
            theirs = read_index_settings(path)
        except SearchError:
            return None
        rows, columns = np.load(path / ROWS_FILE, mmap_mode="r"), _read_columns(path)
        if any(theirs[key] != settings[key] for key in ("kind", "probe", "folder")) or rows.dtype != dtype:
            return None
        return cls({key: row for row, key in enumerate(columns["key"].to_pylist())}, rows, columns)

    def places(self, keys: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """Return where the rows are in the old index, -1 for those that are new or have changed."""
        places = np.array([self.keys.get(key, -1) for key in keys])
        known = np.flatnonzero(places >= 0)
        changed = (np.asarray(self.rows[places[known]]) != rows[known]).any(1)
        places[known[changed]] = -1
        return places

    def kept(self, chunks: Iterator[tuple[Any, np.ndarray]]) -> np.ndarray:
        """Return which of the old rows stay; none where most would go."""
        kept = np.zeros(len(self.rows), bool)
        for columns, rows in chunks:
            places = self.places(columns["key"].to_pylist(), rows)
            kept[places[places >= 0]] = True
        return kept if kept.sum() * 2 > len(kept) else np.zeros_like(kept)


def _write_rows(work: Path, source: Embeddings, old: _Old | None, dtype: np.dtype) -> np.ndarray:
    """Write rows and columns, those of `old` first, and return which of them stayed."""
    kept = np.zeros(0, bool) if old is None else old.kept(_unit_chunks(source, dtype))
    chunks = _unit_chunks(source, dtype) if old is None or not kept.any() else _with_old(source, old, kept, dtype)
    _write(work, chunks, dtype, source.settings["dim"])
    return kept


def _with_old(source: Embeddings, old: _Old, kept: np.ndarray, dtype: np.dtype) -> Iterator[tuple[Any, np.ndarray]]:
    size = exact.block_rows(source.settings["dim"])
    for start in range(0, len(kept), size):
        part = kept[start : start + size]
        yield old.columns.slice(start, size).filter(part), np.asarray(old.rows[start : start + size])[part]
    for columns, rows in _unit_chunks(source, dtype):
        fresh = old.places(columns["key"].to_pylist(), rows) < 0
        yield columns.filter(fresh), rows[fresh]


def _unit_chunks(source: Embeddings, dtype: np.dtype) -> Iterator[tuple[Any, np.ndarray]]:
    from tqdm import tqdm

    hidden = [name for name in OWN if name not in ("key", "path")]
    with tqdm(desc="rows", total=source.count, unit="row", delay=2) as bar:
        for columns, rows in source.chunks():
            rows = rows.astype(np.float32)
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            if not (np.isfinite(lengths).all() and lengths.all()):
                path = columns["path"][int(np.flatnonzero(~(lengths[:, 0] > 0) | ~np.isfinite(lengths[:, 0]))[0])]
                raise SearchError(f"the embedding of {path} is zero or not finite: embed it again")
            bar.update(len(rows))
            yield (
                columns.drop_columns([name for name in hidden if name in columns.column_names]),
                (rows / lengths).astype(dtype),
            )


def _write(work: Path, chunks: Iterator[tuple[Any, np.ndarray]], dtype: np.dtype, dim: int) -> None:
    import pyarrow as pa

    count, writer, schema = 0, None, None
    with (work / ROWS_FILE).open("wb") as file, pa.OSFile(str(work / COLUMNS_FILE), "wb") as sink:
        np.lib.format.write_array_header_1_0(file, _header(dtype, 0, dim))
        for columns, rows in chunks:
            if writer is None:
                schema = columns.schema.remove_metadata()
                writer = pa.ipc.new_file(sink, schema)
            writer.write_table(columns.cast(schema))
            file.write(np.ascontiguousarray(rows).tobytes())
            count += len(rows)
        if writer is None:
            raise SearchError("there are no embeddings to index: embed at least one image")
        writer.close()
    _correct_count(work / ROWS_FILE, dtype, count, dim)


def _header(dtype: np.dtype, count: int, dim: int) -> dict[str, Any]:
    return {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": (count, dim)}


def _correct_count(path: Path, dtype: np.dtype, count: int, dim: int) -> None:
    """Write the header again; NumPy pads it so that the first axis may grow."""
    with path.open("r+b") as file:
        np.lib.format.write_array_header_1_0(file, _header(dtype, count, dim))


def _count(work: Path) -> int:
    return len(np.load(work / ROWS_FILE, mmap_mode="r"))


def _write_graph(work: Path, old: Path, kept: np.ndarray, texts: np.ndarray, wanted: float) -> dict[str, Any]:
    """Write the graph, that of the index `old` where rows of it are kept, and return how it is to be searched."""
    rows = np.load(work / ROWS_FILE, mmap_mode="c")
    tree = graph.open_graph(old / GRAPH_FILE, copy=True) if kept.any() else graph.new_graph(rows.shape[1])
    if kept.any() and not kept.all():
        graph.drop(tree, kept)
    graph.grow(tree, rows)
    tree.save(str(work / GRAPH_FILE))
    expansion, measured = graph.tune(tree, rows, texts, wanted)
    return {"expansion": expansion, "recall": measured, "queries": len(texts), "wanted": wanted}


__all__ = ["ImageIndex", "SearchError", "open_rows", "read_index_settings"]
