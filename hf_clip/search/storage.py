"""Files of an index: rows.npy, columns.arrow, and settings.json, which describes the others.

An HNSW index has a graph.usearch, one of kind int8 codes.npy, and any may hold a text_tower.safetensors.

A writer replaces the whole directory, so a reader must not take one file from the old index and one from the new one:
it compares the generation in settings.json before and after opening the others. settings.json has the size, time and
SHA-256 of each file. A file with another time, such as a copy, is read and compared before it is used: a damaged Arrow
file or graph can crash the process that maps it.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

import numpy as np

from ..data.images import ImageRef
from ..data.tars import find_image
from ..embedding.numpy_texts import NumpyTextTower
from ..utils.files import file_record, file_sha256
from ..utils.objects import check_fields, parse_object
from ..utils.packages import require
from .codes import Codes
from .exact import block_rows
from .graph import open_graph

SETTINGS_FILE, ROWS_FILE, COLUMNS_FILE, GRAPH_FILE = "settings.json", "rows.npy", "columns.arrow", "graph.usearch"
CODES_FILE, TOWER_FILE = "codes.npy", "text_tower.safetensors"
DATA_FILES = (ROWS_FILE, COLUMNS_FILE, GRAPH_FILE, CODES_FILE, TOWER_FILE)
INDEX_FORMAT = "hf_clip index 2"
REQUIRED_SETTINGS = {
    "generation": str, "kind": str, "count": int, "dim": int, "row_dtype": str, "files": dict, "model": str,
    "dtype": str, "probe": [int | float], "text_probe": [int | float],
}  # fmt: skip
INDEX_KINDS = ("exact", "int8", "hnsw")
# a directory that is replaced this often while it is being opened has several writers
ATTEMPTS, PAUSE = 50, 0.01
# unit vectors of float16 are this far from length 1 at most
LENGTH_TOLERANCE = 5e-3


class SearchError(ValueError):
    """Raised for a directory that is not an index, a damaged index, or embeddings that cannot be indexed."""


class IndexFiles(NamedTuple):
    """The opened files of one generation of an index.

    Args:
        settings: The contents of settings.json.
        rows: Unit vectors (N, dim), mapped.
        columns: An Arrow table of N rows, mapped.
        graph: The graph of an HNSW index, else None.
        codes: The 8-bit codes of an int8 index, mapped, else None.
        text_tower: The text tower, if it was asked for and the index has one.
    """

    settings: dict[str, Any]
    rows: np.ndarray
    columns: Any
    graph: Any
    codes: Codes | None
    text_tower: NumpyTextTower | None


def read_index_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Read the settings of an index.

    Raises:
        SearchError: There is no index, or it is damaged or of an earlier version.
    """
    try:
        content = (Path(path) / SETTINGS_FILE).read_bytes()
        settings = parse_object(content)
        settings.pop("checksum", None)
    except (FileNotFoundError, NotADirectoryError):
        raise SearchError(f"there is no index at {path}: make one with hf-clip index") from None
    except ValueError as error:
        raise SearchError(f"{path} is damaged, {SETTINGS_FILE} is not JSON of an index: build it again") from error
    if settings.get("format") != INDEX_FORMAT:
        raise SearchError(f"{path} was made by another version of hf_clip: build it again")
    # compared as bytes: another spelling of the same values is a change as well
    if content != _settings_text(settings).encode():
        raise SearchError(f"{path} is damaged, {SETTINGS_FILE} has changed: build it again")
    try:
        _check_settings(settings)
    except ValueError as error:
        raise SearchError(f"{path} is damaged, in {SETTINGS_FILE} {error}: build it again") from error
    return settings


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for settings that no index has, though their checksum is right."""
    check_fields(settings, REQUIRED_SETTINGS)
    kind = settings["kind"]
    if kind not in INDEX_KINDS:
        raise ValueError(f"its kind is {kind!r:.60}")
    check_fields({"folder": None, "exif": "", **settings}, {"folder": str | None, "exif": str})
    if kind != "exact":
        check_fields(settings, {"expansion": int})
        if settings["expansion"] < 1:
            raise ValueError(f"its expansion is {settings['expansion']}")
    files = settings["files"]
    check_fields(files, dict.fromkeys([ROWS_FILE, COLUMNS_FILE, *files], dict))


def open_index_files(path: str | os.PathLike, growing: bool = False, text_tower: bool = False) -> IndexFiles:
    """Open the files of one generation of an index; no model is needed.

    Args:
        path: The directory.
        growing: Read the graph into memory, where rows can be added and removed, instead of mapping it.
        text_tower: Open the text tower too, if the index has one.

    Raises:
        SearchError: There is no index, or it is damaged.
    """
    require("pyarrow", "search", "an index")
    path = Path(path)
    settings = read_index_settings(path)
    for _ in range(ATTEMPTS):
        try:
            files = _open_files(path, settings, growing, text_tower)
        except (SearchError, OSError):
            if _generation(path) == settings["generation"]:
                raise
        else:
            if _generation(path) == settings["generation"]:
                return files
        # replaced in the meantime; between two renames there is no index for an instant
        sleep(PAUSE)
        with suppress(SearchError):
            settings = read_index_settings(path)
    raise SearchError(f"{path} was replaced {ATTEMPTS} times while it was being opened: wait for its writers")


def _generation(path: Path) -> str | None:
    """Return the generation of the index that is at `path` now, None if there is none."""
    try:
        return read_index_settings(path)["generation"]
    except SearchError:
        return None


def _open_files(path: Path, settings: dict[str, Any], growing: bool, text_tower: bool) -> IndexFiles:
    checks = [_check_file(path, name, recorded) for name, recorded in settings["files"].items()]
    unchanged = all(checks)
    rows = _open_rows(path, settings)
    columns = _open_columns(path, settings, validate=not unchanged)
    tree = None
    if settings["kind"] == "hnsw":
        tree = open_graph(path / GRAPH_FILE, copy=growing)
        if (len(tree), tree.ndim) != rows.shape:
            raise SearchError(
                f"{path} is damaged, {GRAPH_FILE} has {len(tree):,} rows, not {len(rows):,}: build it again"
            )
    if not unchanged:
        _check_lengths(path, rows)
    codes = _open_codes(path, settings) if settings["kind"] == "int8" else None
    return IndexFiles(settings, rows, columns, tree, codes, _open_tower(path, settings) if text_tower else None)


def _check_file(path: Path, name: str, recorded: Mapping[str, Any]) -> bool:
    """Return True for the very file that was written; raise SearchError if one with another time differs from it."""
    if name not in DATA_FILES:
        raise SearchError(f"{path} is damaged, {SETTINGS_FILE} has the unknown file {name!r}: build it again")
    try:
        stat = (path / name).stat()
    except OSError as error:
        raise SearchError(f"{path} is damaged, {name} is missing: build it again") from error
    if stat.st_size != recorded.get("bytes"):
        raise SearchError(
            f"{path} is damaged, {name} has {stat.st_size:,} bytes, not {recorded.get('bytes')}: build it again"
        )
    if stat.st_mtime_ns == recorded.get("modified_ns"):
        return True
    if file_sha256(path / name) != recorded.get("sha256"):
        raise SearchError(f"{path} is damaged, the contents of {name} have changed: build it again")
    return False


def _open_rows(path: Path, settings: Mapping[str, Any]) -> np.ndarray:
    rows = _open_array(path, ROWS_FILE, settings, settings["row_dtype"])
    if rows.dtype.name not in ("float32", "float16"):
        raise SearchError(f"{path} is damaged, {ROWS_FILE} has {rows.dtype}, no dtype of rows: build it again")
    return rows


def _open_codes(path: Path, settings: Mapping[str, Any]) -> Codes:
    try:
        center, scale = (np.array(settings.get(name), np.float32) for name in ("center", "scale"))
    except (ValueError, TypeError):
        center = scale = np.empty(0, np.float32)
    if not all(part.shape == (settings["dim"],) and np.isfinite(part).all() for part in (center, scale)):
        raise SearchError(f"{path} is damaged, {SETTINGS_FILE} lacks the scale of its codes: build it again")
    return Codes(_open_array(path, CODES_FILE, settings, "int8"), center, scale)


def _open_array(path: Path, name: str, settings: Mapping[str, Any], dtype: str) -> np.ndarray:
    """Map an array of `count` rows; SearchError unless it has this dtype."""
    try:
        # copy on write: PyTorch warns of arrays that cannot be written
        array = np.load(path / name, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise SearchError(f"{path} is damaged, {name} is missing: build it again") from error
    except (ValueError, TypeError, EOFError, SyntaxError) as error:
        raise SearchError(f"{path} is damaged, {name} is not an array: build it again") from error
    expected = (settings["count"], settings["dim"])
    if array.shape != expected or array.dtype.name != dtype:
        raise SearchError(
            f"{path} is damaged, {name} has {array.dtype} of shape {array.shape}, not {dtype} of shape {expected}: "
            "build it again"
        )
    return array


def _open_columns(path: Path, settings: Mapping[str, Any], validate: bool) -> Any:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path / COLUMNS_FILE)) as source:
            columns = pa.ipc.open_file(source).read_all()
        if validate:
            columns.validate(full=True)
    except pa.ArrowException as error:
        raise SearchError(f"{path} is damaged, {COLUMNS_FILE} is not an Arrow table: build it again") from error
    if len(columns) != settings["count"] or not {"key", "path"} <= set(columns.column_names):
        raise SearchError(
            f"{path} is damaged, {COLUMNS_FILE} has {len(columns):,} rows of {', '.join(columns.column_names)}, not "
            f"{settings['count']:,} with key and path: build it again"
        )
    return columns


def _open_tower(path: Path, settings: Mapping[str, Any]) -> NumpyTextTower | None:
    if TOWER_FILE not in settings["files"]:
        return None
    try:
        return NumpyTextTower(path / TOWER_FILE)
    except ValueError as error:
        raise SearchError(f"{path} is damaged, {error}") from error


def _check_lengths(path: Path, rows: np.ndarray) -> None:
    """Raise SearchError for a row that is not a unit vector; one NaN would hide all other rows from a search."""
    size = block_rows(rows.shape[1])
    for start in range(0, len(rows), size):
        lengths = np.linalg.norm(np.asarray(rows[start : start + size], np.float32), axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) <= LENGTH_TOLERANCE))
        if len(wrong):
            raise SearchError(f"{path} is damaged, row {start + wrong[0]:,} is not a unit vector: build it again")


def image_source(settings: Mapping[str, Any], path: str, schemes: Collection[str] = ()) -> ImageRef:
    """Refer to an image by its `path` in the columns of an index: a file, a URL, or a member of a tar.

    An index may come from a stranger: addresses other than http(s) and paths outside of its folder are read only where
    `schemes` allows them.
    """
    return find_image(path, settings.get("folder") or "", schemes)


def write_rows(work: Path, chunks: Iterator[tuple[Any, np.ndarray]], dtype: np.dtype, dim: int) -> int:
    """Write rows and columns chunk by chunk into the directory of a new index, and return their number.

    Raises:
        SearchError: There are no rows.
    """
    import pyarrow as pa

    count, writer, schema = 0, None, None
    with (work / ROWS_FILE).open("wb") as file, pa.OSFile(str(work / COLUMNS_FILE), "wb") as sink:
        _write_header(file, dtype, 0, dim)
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
    # NumPy pads the header so that the number of rows, known only now, can be written over the first one
    with (work / ROWS_FILE).open("r+b") as file:
        _write_header(file, dtype, count, dim)
    return count


def _write_header(file: Any, dtype: np.dtype, count: int, dim: int) -> None:
    header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": (count, dim)}
    np.lib.format.write_array_header_1_0(file, header)


def write_index_settings(work: Path, settings: Mapping[str, Any]) -> None:
    """Write settings.json, with a new generation and the size, time and SHA-256 of each file."""
    rows = np.load(work / ROWS_FILE, mmap_mode="r")
    # settings.json is the last file: a directory without it is not an index
    files = {name: file_record(work / name) for name in DATA_FILES if (work / name).is_file()}
    written = {
        "format": INDEX_FORMAT,
        "generation": uuid.uuid4().hex,
        **settings,
        "count": len(rows),
        "dim": rows.shape[1],
        "row_dtype": rows.dtype.name,
        "files": files,
    }
    (work / SETTINGS_FILE).write_bytes(_settings_text(written).encode())


def _settings_text(settings: Mapping[str, Any]) -> str:
    """Write settings as JSON, with a checksum of them at the end."""
    checksum = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return json.dumps({**settings, "checksum": checksum})


__all__ = [
    "CODES_FILE",
    "COLUMNS_FILE",
    "GRAPH_FILE",
    "ROWS_FILE",
    "SETTINGS_FILE",
    "TOWER_FILE",
    "IndexFiles",
    "SearchError",
    "image_source",
    "open_index_files",
    "read_index_settings",
    "write_index_settings",
    "write_rows",
]
