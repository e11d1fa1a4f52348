"""Search of images by text, image, or weighted sums of both, in an index of embeddings."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from ..data.images import Exif, ImageRef, ImageTally
from ..data.sources import OWN
from ..embedding.features import Array, Model, on_cpu
from ..embedding.identity import PROBE, OtherModelError, image_probe, name_of, same_model, text_probe
from ..embedding.numpy_texts import NumpyTextTower, save_text_tower
from ..embedding.reading import Embeddings, open_embeddings
from ..embedding.stores import READING
from ..exported.model import ExportedCLIP
from ..utils.files import new_directory
from ..zero_shot.canonical_texts import CANONICAL_TEXTS
from . import exact, graph
from .codes import Codes, nearest_by_codes, write_codes
from .cutoff import Cutoff, check_cutoff, expected_by_chance, stand_out
from .filters import Where, allowed_rows
from .storage import (
    CODES_FILE,
    GRAPH_FILE,
    ROWS_FILE,
    TOWER_FILE,
    SearchError,
    image_source,
    open_index_files,
    read_index_settings,
    write_index_settings,
    write_rows,
)
from .tuning import MEASURED_AT, Search, tune
from .tuning_texts import TUNING_TEXTS

Weighted = Any  # one or several items, or pairs (item, weight)
TIMED_QUERIES = 16
# a text tower is kept in the index if no number of its embeddings is further from the model's
TOWER_TOLERANCE = 1e-5
QUERY_BATCH = 16


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Search images by texts, images, and sums of both.

    An index is a directory with the embeddings as unit vectors, which are memory-mapped, the columns of the images, and
    the identity of the model. `kind="exact"` compares a query with every row. `kind="int8"` compares it with 8-bit
    codes of every row, a quarter of the bytes of float32, and `kind="hnsw"` searches a graph, for millions of images;
    both rank their candidates by the stored rows.

    Args:
        path: The directory.
        settings: Kind, model, probes, and for int8 and HNSW the measured recall, as `build` stored them.
        rows: Unit vectors (N, dim), float32 or float16.
        columns: An Arrow table with `path` and the further columns of the images' source.
        graph: The graph of an HNSW index, else None.
        codes: The codes of an int8 index, else None.
        model: A CLIP, or its text tower with projection where only texts are searched for.
        processor: Its processor or, for a text tower, tokenizer; None for the index's own text tower.
        allow_schemes: Kinds of addresses of its images that `source_of` may read besides http and https.

    Example:
        >>> index = ImageIndex.build("features.parquet", "photos.index", model, processor)
        >>> index.search("a red car", minus="snow", k=5)
    """

    path: Path
    settings: Mapping[str, Any]
    rows: np.ndarray
    columns: Any
    graph: Any
    codes: Codes | None
    model: "Model | NumpyTextTower"
    processor: Any
    allow_schemes: Collection[str] = ()

    @classmethod
    def build(
        cls,
        embeddings: str | os.PathLike,
        output: str | os.PathLike,
        model: Model,
        processor: Any,
        *,
        kind: Literal["exact", "int8", "hnsw"] = "exact",
        dtype: Literal["float32", "float16"] = "float32",
        queries: Sequence[str] | None = None,
        recall: float = 0.95,
        folder: str | os.PathLike | None = None,
        text_tower: bool = True,
    ) -> "ImageIndex":
        """Build an index of the output of `hf-clip embed`, or bring an existing index up to date.

        If `output` is an index of the same kind and model, its rows stay, rows of new images are inserted, and rows of
        changed and missing images are removed; if more than half would be removed, the index is built anew.

        Args:
            embeddings: A .safetensors, .npy or .parquet, or a directory of parts.
            output: The directory of the index; the complete new index replaces it in one step.
            model: The CLIP that made the embeddings, with both towers.
            processor: Its processor.
            kind: "exact", "int8" (needs numkong) or "hnsw" (needs usearch).
            dtype: The dtype of the stored rows; float16 halves them, and changes scores by about 1e-4.
            queries: Texts on which an int8 or HNSW index is tuned (default: 240 common queries).
            recall: The share of the 10 nearest images that such an index should find, averaged over `queries`.
            folder: The folder that relative paths start from (default: the folder that was embedded).
            text_tower: Keep a copy of the text tower, which answers texts without the model (ViT-B/32: 127 MB). Towers
                that do not compute in float32, and those of other tokenizers than HFCLIPTokenizer, are not kept.

        Returns:
            The index, opened.

        Raises:
            OtherModelError: Another model made the embeddings.
            SearchError: A key repeats, or an embedding is zero or not finite.
            StoreError: There are no embeddings.
        """
        if kind not in ("exact", "int8", "hnsw"):
            raise ValueError(f"kind is {kind!r}: choose exact, int8 or hnsw")
        source, output = open_embeddings(os.fspath(embeddings)), Path(output)
        _check(image_probe(model, processor), source.settings, "probe", model)
        settings = {
            "kind": kind,
            "model": source.settings["model"],
            "dtype": source.settings["dtype"],
            "probe": source.settings["probe"],
            "text_probe": text_probe(model, processor)[0].tolist(),
            "folder": os.fspath(folder) if folder is not None else source.settings.get("folder"),
            **{key: source.settings.get(key, default) for key, default in READING.items()},
        }
        with new_directory(output) as work:
            settings |= _write_data(work, source, output, settings, np.dtype(dtype), model, processor, queries, recall)
            if text_tower and not isinstance(model, ExportedCLIP):  # which starts as fast as a copy of its tower
                _write_text_tower(work, model, processor)
            write_index_settings(work, settings)
        return cls.load(output, model, processor)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        model: "Model | None" = None,
        processor: Any = None,
        *,
        allow_schemes: Collection[str] = (),
    ) -> "ImageIndex":
        """Open an index; rows and graph are mapped, not read.

        An index that was copied is read once and compared with its checksums.

        Args:
            path: The directory.
            model: The CLIP that made the embeddings, or its text tower. Without one, the text tower in the index
                answers texts, without importing torch, and equal up to rounding.
            processor: Its processor or tokenizer.
            allow_schemes: Kinds of addresses that an image may have besides http and https, such as s3; "file" for
                paths outside of its folder.

        Returns:
            The index.

        Raises:
            OtherModelError: The index was made with another model.
            SearchError: There is no index, it is damaged, or no model is given and it has no text tower.
        """
        if model is None:
            files = open_index_files(path, text_tower=True)
            if files.text_tower is None:
                raise SearchError(f"{path} has no text tower: load it with the model that made it")
            return cls(Path(path), *files[:-1], files.text_tower, None, allow_schemes)
        _check(text_probe(model, processor)[0], read_index_settings(path), "text_probe", model)
        return cls(Path(path), *open_index_files(path)[:-1], model, processor, allow_schemes)

    def __len__(self) -> int:
        return len(self.rows)

    def search(
        self,
        text: Weighted = (),
        *,
        image: Weighted = (),
        minus: Weighted = (),
        k: int = 20,
        where: Where = None,
        min_score: float = -1.0,
        cutoff: Cutoff | None = None,
        bank: Sequence[str] = CANONICAL_TEXTS,
    ) -> list[dict[str, Any]]:
        """Find the images most similar to a text, an image, or a sum of several.

        Args:
            text: A text, or several, each alone or as (text, weight).
            image: An image as `embed_images` takes it, or a list of several, each alone or as (image, weight).
            minus: Texts to subtract, as `text`.
            k: How many images to find.
            where: Conditions on columns, such as [("year", ">=", 2020)], see `hf_clip.search.filters`.
            min_score: Leave out images with a lower score. Cosines of texts with images are low, about 0.2 to 0.35
                for a match.
            cutoff: "auto" keeps the images that stand out from the collection for this query, a number the best ones
                among which so many are expected by chance; a heuristic that `hf_clip.search.cutoff` describes.
            bank: Texts that fit anywhere, or everything else that the images show; used by `cutoff`.

        Returns:
            For each image, best first: `path` and the other columns, `score` (cosine), and `row`; with `cutoff` also
            `chance`, the number of images that would score as high by chance.

        Raises:
            ValueError: The query is empty, a column or the `cutoff` is unknown, or `cutoff` has too few images.
        """
        if cutoff is not None:
            check_cutoff(cutoff)
        query = self.embed_query(text, image, minus)
        hits = self._nearest_hits(query, k, where)
        if cutoff is not None:
            allowed = allowed_rows(self.columns, where) if where else None
            texts = self._embed_texts(list(bank))
            chance = expected_by_chance(self.rows, query, texts, _rows_of(hits), allowed)
            hits = [
                {**hit, "chance": float(number)}
                for hit, number, kept in zip(hits, chance, stand_out(chance, cutoff), strict=True)
                if kept
            ]
        return self._with_columns(hits, min_score)

    def find(
        self, query: np.ndarray, k: int = 20, where: Where = None, min_score: float = -1.0
    ) -> list[dict[str, Any]]:
        """Find the images most similar to a unit vector (dim,), an embedding of the same model; see `search`."""
        return self._with_columns(self._nearest_hits(query, k, where), min_score)

    def _nearest_hits(self, query: np.ndarray, k: int, where: Where) -> list[dict[str, Any]]:
        scores, found = self.nearest(query[None], k, where)
        return [{"score": float(score), "row": int(row)} for score, row in zip(scores[0], found[0], strict=True)]

    def _with_columns(self, hits: list[dict[str, Any]], min_score: float) -> list[dict[str, Any]]:
        hits = [hit for hit in hits if hit["score"] >= min_score]
        columns = self.columns.take(_rows_of(hits)).to_pylist()
        return [{**values, **hit} for values, hit in zip(columns, hits, strict=True)]

    @property
    def exif(self) -> Exif:
        """The use of the EXIF orientation in its embeddings, which the images of a query follow."""
        return self.settings.get("exif", "ignore")

    def source_of(self, path: str) -> ImageRef:
        """Refer to an image: a file, a URL, or a member of a tar.

        Args:
            path: The `path` of a hit.

        Returns:
            A reference, whose `open` reads the image.
        """
        return image_source(self.settings, path, self.allow_schemes)

    def nearest(self, queries: np.ndarray, k: int, where: Where = None) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` nearest rows of each query.

        Args:
            queries: Unit vectors (Q, dim), embeddings of the same model.
            k: How many rows to find.
            where: Conditions on columns; the rows that meet them are compared exactly, in an index of any kind.

        Returns:
            Cosines (Q, k) float64 and row numbers (Q, k), best first; rows with equal cosines in their order.

        Raises:
            ValueError: `k` is less than 1, or a column is unknown.
        """
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least 1")
        if where:
            return exact.nearest(self.rows, np.asarray(queries, np.float32), k, allowed_rows(self.columns, where))
        if self.graph is not None:
            return graph.nearest_in_graph(self.graph, self.rows, queries, k, self.settings["expansion"])
        if self.codes is not None:
            return nearest_by_codes(self.codes, self.rows, queries, k, self._candidates(k))
        return exact.nearest(self.rows, np.asarray(queries, np.float32), k)

    def _candidates(self, k: int) -> int:
        """Return how many candidates an int8 index ranks anew for `k` rows: as many for each as its recall took."""
        return -(-self.settings["expansion"] * max(k, MEASURED_AT) // MEASURED_AT)

    def embed_query(self, text: Weighted = (), image: Weighted = (), minus: Weighted = ()) -> np.ndarray:
        """Embed a weighted sum of texts and images as a unit vector (dim,).

        Args:
            text: Texts, as in `search`.
            image: Images, as in `search`.
            minus: Texts to subtract.

        Returns:
            The vector, float32.

        Raises:
            ValueError: The query is empty, or the sum is zero.
        """
        texts = [*_weighted(text), *((value, -weight) for value, weight in _weighted(minus))]
        images = _weighted(image)
        parts = []
        if not all(str(value).strip() for value, _ in texts):
            raise ValueError("a text of the query is empty: write a description, or leave it out")
        if texts:
            parts.append(_sum(self._embed_texts([value for value, _ in texts]), texts))
        if images:
            if not (isinstance(self.model, ExportedCLIP) or hasattr(self.model, "get_image_features")):
                raise ValueError("only the text tower is loaded: load the index with the whole CLIP to search by image")
            parts.append(_sum(self._embed_images([value for value, _ in images]), images))
        if not parts:
            raise ValueError("there is nothing to search for: give a text or an image")
        total = np.sum(parts, 0)
        length = np.linalg.norm(total)
        if not length > 1e-6:
            raise ValueError("the texts and images cancel each other: change their weights")
        return total / length

    def _embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if isinstance(self.model, NumpyTextTower):
            return self.model.embed(texts)
        from ..embedding.texts import embed_texts

        return np.asarray(embed_texts(self.model, self.processor, texts))

    def _embed_images(self, images: list[Any]) -> np.ndarray:
        from ..embedding.images import image_features

        tally = ImageTally()
        reading: dict[str, Any] = {key: self.settings.get(key, default) for key, default in READING.items()}
        batches = image_features(self.model, self.processor, images, QUERY_BATCH, None, **reading, tally=tally)
        embeds = np.concatenate([np.asarray(on_cpu(embeds)) for _, embeds in batches])
        tally.warn(self.exif, "it is in the index, too: embed all images again with --exif apply")
        return embeds


def _rows_of(hits: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([hit["row"] for hit in hits], np.int64)


def _sum(embeds: Array, items: Sequence[tuple[Any, float]]) -> np.ndarray:
    return np.array([weight for _, weight in items], np.float32) @ np.asarray(embeds)


def _weighted(items: Weighted) -> list[tuple[Any, float]]:
    """List the items, each with its weight."""
    if not isinstance(items, list | tuple) or _is_pair(items):
        items = [items]
    return [item if _is_pair(item) else (item, 1.0) for item in items if item is not None]


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], int | float)


def _check(probe: Array, settings: Mapping[str, Any], name: str, model: Model) -> None:
    """Raise OtherModelError unless `probe`, the embedding of a fixed input, equals the one in the settings."""
    known = np.array(settings[name], np.float32)
    if not same_model(probe, known, same_precision=False):
        raise OtherModelError(
            f"the embeddings were made with another model ({settings['model']}), not {name_of(model)}: search with the "
            "model that made them"
        )


# --- building ---------------------------------------------------------------------------------------------------------


@dataclass
class _Existing:
    """An index that is brought up to date: its rows stay where image and embedding are unchanged."""

    keys: dict[str, int]
    rows: np.ndarray
    columns: Any
    graph: Any

    @classmethod
    def at(cls, path: Path, settings: Mapping[str, Any], dtype: np.dtype) -> "_Existing | None":
        """Open the index at `path`, or return None unless it has the same kind, dtype, folder, reading and model."""
        try:
            files = open_index_files(path, growing=True)
        except SearchError:  # none, damaged, or of an earlier version: built anew
            return None
        if (
            any(files.settings.get(key) != settings[key] for key in ("kind", "probe", "folder"))
            or any(files.settings.get(key, default) != settings[key] for key, default in READING.items())
            or files.rows.dtype != dtype
        ):
            return None
        keys = {key: row for row, key in enumerate(files.columns["key"].to_pylist())}
        return cls(keys, files.rows, files.columns, files.graph)

    def places(self, keys: Sequence[str], rows: np.ndarray) -> np.ndarray:
        """Return the row number of each image in the existing index, -1 for new and changed ones."""
        places = np.array([self.keys.get(key, -1) for key in keys])
        known = np.flatnonzero(places >= 0)
        changed = (np.asarray(self.rows[places[known]]) != rows[known]).any(1)
        places[known[changed]] = -1
        return places

    def kept(self, chunks: Iterator[tuple[Any, np.ndarray]]) -> np.ndarray:
        """Return True for each existing row that stays; none stays where more than half would go."""
        kept = np.zeros(len(self.rows), bool)
        for columns, rows in chunks:
            places = self.places(columns["key"].to_pylist(), rows)
            kept[places[places >= 0]] = True
        # removed rows leave a graph with long detours: past half, building it anew is faster and better
        return kept if kept.sum() * 2 > len(kept) else np.zeros_like(kept)


def _write_data(
    work: Path,
    source: Embeddings,
    output: Path,
    settings: Mapping[str, Any],
    dtype: np.dtype,
    model: Model,
    processor: Any,
    queries: Sequence[str] | None,
    recall: float,
) -> dict[str, Any]:
    """Write rows, columns and codes or graph, and return the settings that they add.

    No file is mapped any more when this returns: Windows renames no folder that has one.
    """
    old = _Existing.at(output, settings, dtype)
    count, kept = _write_all_rows(work, source, old, dtype)
    added: dict[str, Any] = {"inserted": count - int(kept.sum())}
    if settings["kind"] == "exact":
        return added
    from ..embedding.texts import embed_texts

    texts = np.asarray(embed_texts(model, processor, list(queries or TUNING_TEXTS), truncation=True))
    rows = np.load(work / ROWS_FILE, mmap_mode="c")
    if settings["kind"] == "hnsw":
        tree = _write_graph(work, rows, old, kept)
        return added | _tuned(partial(graph.nearest_in_graph, tree, rows), rows, texts, recall)
    codes = write_codes(rows, work / CODES_FILE)
    tuned = _tuned(partial(nearest_by_codes, codes, rows), rows, texts, recall)
    return added | {"center": codes.center.tolist(), "scale": codes.scale.tolist()} | tuned


def _write_all_rows(work: Path, source: Embeddings, old: _Existing | None, dtype: np.dtype) -> tuple[int, np.ndarray]:
    """Write rows and columns, kept ones first; return their number and which rows of `old` were kept."""
    kept = np.zeros(0, bool) if old is None else old.kept(_unit_chunks(source, dtype))
    chunks = _unit_chunks(source, dtype) if old is None or not kept.any() else _with_old(source, old, kept, dtype)
    return write_rows(work, _unique(chunks), dtype, source.settings["dim"]), kept


def _unique(chunks: Iterator[tuple[Any, np.ndarray]]) -> Iterator[tuple[Any, np.ndarray]]:
    """Pass chunks on; raise SearchError for a key that repeats, because one image would replace the other."""
    seen: set[str] = set()
    for columns, rows in chunks:
        for key in columns["key"].to_pylist():
            if key in seen:
                raise SearchError(f"the key {key!r} is that of several images: embed them with a key that is unique")
            seen.add(key)
        yield columns, rows


def _with_old(
    source: Embeddings, old: _Existing, kept: np.ndarray, dtype: np.dtype
) -> Iterator[tuple[Any, np.ndarray]]:
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


def _write_graph(work: Path, rows: np.ndarray, old: _Existing | None, kept: np.ndarray) -> Any:
    """Write the graph, grown from the graph of `old` if rows are kept."""
    tree = old.graph if old is not None and kept.any() else graph.new_graph(rows.shape[1])
    if len(tree) and not kept.all():
        graph.drop(tree, kept)
    graph.grow(tree, rows)
    tree.save(str(work / GRAPH_FILE))
    return tree


def _tuned(search: Search, rows: np.ndarray, texts: np.ndarray, wanted: float) -> dict[str, Any]:
    """Return the expansion that reaches the recall `wanted`, and measured times."""
    expansion, measured = tune(search, rows, texts, wanted)
    ways: dict[str, Callable[[np.ndarray], Any]] = {
        "query_ms": lambda query: search(query, MEASURED_AT, expansion),
        "exact_ms": lambda query: exact.nearest(rows, query, MEASURED_AT),
    }
    times = {name: _median_ms(way, texts[:TIMED_QUERIES]) for name, way in ways.items()}
    return {"expansion": expansion, "recall": measured, "queries": len(texts), "wanted": wanted, **times}


def _write_text_tower(work: Path, model: Model, processor: Any) -> None:
    """Write the model's text tower if NumPy repeats its embeddings."""
    from ..embedding.texts import embed_texts
    from ..model.tokenization_hf_clip import HFCLIPTokenizer

    tokenizer, config = getattr(processor, "tokenizer", processor), getattr(model.config, "text_config", model.config)
    if not isinstance(tokenizer, HFCLIPTokenizer) or len(tokenizer) != tokenizer.vocab_size:
        return
    path = work / TOWER_FILE
    if save_text_tower(model.state_dict(), config.to_dict(), tokenizer.backend_tokenizer.to_str(), path):
        texts = [PROBE, *TUNING_TEXTS[:2]]
        if not np.allclose(
            NumpyTextTower(path).embed(texts), embed_texts(model, processor, texts).numpy(), 0, TOWER_TOLERANCE
        ):
            path.unlink()


def _median_ms(search: Callable[[np.ndarray], Any], queries: np.ndarray) -> float:
    """Return the median time of a search with one query at a time."""
    times = []
    for query in queries:
        start = perf_counter()
        search(query[None])
        times.append((perf_counter() - start) * 1e3)
    return float(np.median(times))


__all__ = ["ImageIndex"]
