"""Embeddings of a folder's images in one file, written in as many runs as it takes.

A run appends to two files beside the output: OUTPUT.partial, the rows as float32, and OUTPUT.partial.jsonl, the
settings and then one record per row. However it ends, what both hold in whole is kept. A finished output has its
settings and records in OUTPUT.index.jsonl, so that later runs embed only what is new.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from ..utils.files import replacing

CHUNK_ROWS = 4096
MARK = "new"  # of files that are being written; a lock keeps other processes off
DTYPE = np.dtype("<f4")
# what safetensors reads at most is 100 MB
MAX_SAFETENSORS_HEADER = 90_000_000


class StoreError(ValueError):
    """Raised for an output that these embeddings can't go to."""


class Record(NamedTuple):
    """Identify an image: its path below the folder, with `/`, and what tells that it has changed."""

    path: str
    size: int
    mtime_ns: int


# --- folders ----------------------------------------------------------------------------------------------------------


def scan(folder: str | os.PathLike) -> dict[Record, str]:
    """Find the images below `folder`, each with the path to open it by."""
    from ..data.images import image_paths

    return {_record(path, folder): path for path in image_paths(folder)}


def _record(path: str, folder: str | os.PathLike) -> Record:
    try:
        stat = os.stat(path)
        size, mtime_ns = stat.st_size, stat.st_mtime_ns
    except OSError:  # such as a dangling link: whoever opens it will say so
        size, mtime_ns = -1, -1
    return Record(os.path.relpath(path, folder).replace(os.sep, "/"), size, mtime_ns)


def as_line(path: str) -> str:
    """Write `path` as one line of valid Unicode, which the name of a file need not be."""
    return path.encode(errors="backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


# --- file formats -----------------------------------------------------------------------------------------------------


def write_safetensors(path: Path, chunks: Iterable[np.ndarray], paths: Sequence[str], settings: dict) -> None:
    shape = [len(paths), settings["dim"]]
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, shape[0] * shape[1] * DTYPE.itemsize]}
    # safetensors.save_file would want all rows in memory
    header = json.dumps({"__metadata__": _metadata(paths, settings), "embeddings": tensor}).encode()
    header += b" " * (-len(header) % 8)
    _write_raw(path, len(header).to_bytes(8, "little") + header, chunks)


def read_safetensors(path: Path, settings: dict) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        yield from _read_raw(path, 8 + int.from_bytes(file.read(8), "little"), settings["dim"])


def write_npy(path: Path, chunks: Iterable[np.ndarray], paths: Sequence[str], settings: dict) -> None:
    header = {"descr": DTYPE.str, "fortran_order": False, "shape": (len(paths), settings["dim"])}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    _write_raw(path, b"", chunks, "ab")


def read_npy(path: Path, settings: dict) -> Iterator[np.ndarray]:
    yield from _read_raw(path, np.load(path, mmap_mode="r").offset, settings["dim"])


def write_parquet(path: Path, chunks: Iterable[np.ndarray], paths: Sequence[str], settings: dict) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    embedding = pa.list_(pa.float32(), settings["dim"])
    metadata = {key: value for key, value in _metadata(paths, settings).items() if key != "paths"}
    schema = pa.schema({"path": pa.string(), "embedding": embedding}).with_metadata(metadata)
    with pq.ParquetWriter(path, schema) as writer:
        start = 0
        for chunk in chunks:
            names = [as_line(name) for name in paths[start : start + len(chunk)]]
            rows = pa.FixedSizeListArray.from_arrays(pa.array(chunk.ravel()), type=embedding)
            writer.write_table(pa.table([pa.array(names), rows], schema=schema))
            start += len(chunk)


def read_parquet(path: Path, settings: dict) -> Iterator[np.ndarray]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(CHUNK_ROWS, columns=["embedding"]):
            yield batch.column(0).flatten().to_numpy().reshape(-1, settings["dim"])


def _metadata(paths: Sequence[str], settings: dict) -> dict[str, str]:
    kept = {key: str(settings[key]) for key in ("model", "dtype", "normalize")}
    return {**kept, "paths": json.dumps(list(paths))}


def _write_raw(path: Path, header: bytes, chunks: Iterable[np.ndarray], mode: str = "wb") -> None:
    with path.open(mode) as file:
        file.write(header)
        for chunk in chunks:
            file.write(chunk.tobytes())


def _read_raw(path: Path, offset: int, dim: int) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        file.seek(offset)
        while len(chunk := np.fromfile(file, DTYPE, CHUNK_ROWS * dim)):
            yield chunk


class Format(NamedTuple):
    write: Callable[[Path, Iterable[np.ndarray], Sequence[str], dict], None]
    read: Callable[[Path, dict], Iterator[np.ndarray]]


FORMATS = {
    ".safetensors": Format(write_safetensors, read_safetensors),
    ".npy": Format(write_npy, read_npy),
    ".parquet": Format(write_parquet, read_parquet),
}


# --- the store --------------------------------------------------------------------------------------------------------


class FeatureStore:
    """Keep the embeddings for `output`, whose suffix is one of FORMATS: those on disk, and those to come.

    `settings` are what all rows have in common: `dim`, `model`, `dtype`, `normalize`, and `probe`, an embedding of
    length 1 by which the model is known, equal within `tolerance`. `restart` forgets what there is; the output itself
    stays until `finish` replaces it. To be used in a `with`, which keeps other processes off.

    Raises StoreError where the output belongs to other settings, to another process, or to no store.
    """

    def __init__(self, output: Path, settings: dict[str, Any], tolerance: float, restart: bool = False):
        self.output, self.settings, self._tolerance = output, settings, tolerance
        self.partial = Path(f"{output}.partial")
        self._partial_index, self._index = Path(f"{output}.partial.jsonl"), Path(f"{output}.index.jsonl")
        self._restart = restart
        self._row_bytes = settings["dim"] * DTYPE.itemsize
        self._open_files = ExitStack()
        self._files: list[BinaryIO] = []
        self._appending = Lock()

    def __enter__(self) -> "FeatureStore":
        lock = self.output.with_name(f".{self.output.name}.lock")
        with ExitStack() as stack:
            try:
                stack.enter_context(FileLock(lock, timeout=0))
            except Timeout:
                raise StoreError(f"another process is writing {self.output}: wait for it, or stop it.") from None
            stack.callback(lock.unlink, missing_ok=True)
            if self._restart:
                self._delete_partial()
            self._rows = {record: row for row, record in enumerate(self._read())}
            self._open_files = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._open_files.__exit__(*error)

    def __contains__(self, record: Record) -> bool:
        return record in self._rows

    def holds(self, records: Sequence[Record]) -> bool:
        """Return True if the output is finished, and of these images."""
        return not self._unfinished and list(self._rows) == list(records)

    def append(self, records: Sequence[Record], embeds: np.ndarray) -> None:
        """Keep the rows `embeds` (B, dim), float32."""
        with self._appending:  # rows and records go side by side, whichever thread brings them
            self._open()
            rows, index = self._files
            rows.write(np.ascontiguousarray(embeds, DTYPE).tobytes())
            rows.flush()
            index.write("".join(_as_json(record) for record in records).encode())
            index.flush()
            for record in records:
                self._rows[record] = len(self._rows)

    def finish(self, records: Sequence[Record]) -> None:
        """Write the rows of `records`, in that order, as the output."""
        self._open()
        rows = np.array([self._rows[record] for record in records])
        paths = [record.path for record in records]
        with replacing(self.output, MARK) as work:
            FORMATS[self.output.suffix].write(work, self._chunks(rows), paths, self.settings)
        if self.output.suffix == ".npy":
            with replacing(self.output.with_suffix(".paths.txt"), MARK) as work:
                work.write_text("".join(f"{as_line(path)}\n" for path in paths), encoding="utf-8")
        self._write_index(self._index, records)
        self._delete_partial()

    def _read(self) -> list[Record]:
        """Return the records of what is there, in the order of its rows."""
        self._unfinished = False
        settings, records = read_index(self._partial_index)
        if settings is not None:
            self._check(settings, self.partial)
            self._unfinished = True
            size = self.partial.stat().st_size if self.partial.exists() else 0
            # a process that was killed may have left half a row, or rows without records
            return records[: size // self._row_bytes]
        if self._restart or not self.output.exists():
            return []
        settings, records = read_index(self._index)
        if settings is None:
            raise StoreError(
                f"{self.output} exists, without the {self._index.name} that tells what it is: pass --restart to "
                "replace it, or choose another output."
            )
        self._check(settings, self.output)
        return records

    def _check(self, settings: dict, path: Path) -> None:
        check_settings(path, settings, self.settings, self._tolerance)

    def _open(self) -> None:
        """Have partial files of whole rows and records that hold all that is there, open to append to."""
        if self._files:
            return
        if self._unfinished:
            with self.partial.open("ab") as file:
                file.truncate(len(self._rows) * self._row_bytes)
        else:
            with self.partial.open("wb") as file:
                if self._rows:
                    for chunk in FORMATS[self.output.suffix].read(self.output, self.settings):
                        file.write(chunk.tobytes())
            if self.partial.stat().st_size != len(self._rows) * self._row_bytes:
                self.partial.unlink()
                raise StoreError(f"{self.output} is not what {self._index.name} tells: pass --restart to replace it.")
        self._write_index(self._partial_index, self._rows)
        self._unfinished = True
        self._files = [self._open_files.enter_context(path.open("ab")) for path in (self.partial, self._partial_index)]

    def _chunks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(rows), CHUNK_ROWS):
            # mapped anew each time: the pages of one map would pile up in memory
            mapped = np.memmap(self.partial, DTYPE, "r", shape=(len(self._rows), self.settings["dim"]))
            yield mapped[rows[start : start + CHUNK_ROWS]]

    def _write_index(self, path: Path, records: Iterable[Record]) -> None:
        with replacing(path, MARK) as work, work.open("w", encoding="utf-8") as file:
            file.write(_as_json(self.settings))
            file.writelines(map(_as_json, records))

    def _delete_partial(self) -> None:
        self._partial_index.unlink(missing_ok=True)  # first: rows without an index count for nothing
        self.partial.unlink(missing_ok=True)


def check_output(output: Path, paths: Sequence[str] = ()) -> None:
    """Raise StoreError, before any work, for an output that can't be written, or not with so many `paths`."""
    if output.suffix not in FORMATS:
        raise StoreError(f"{output} should end in {', '.join(FORMATS)}.")
    if output.is_dir():
        raise StoreError(f"can't write {output}: it is a folder.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"can't write {output}: {error}") from error
    if not os.access(output.parent, os.W_OK):
        raise StoreError(f"can't write {output}: no permission to write in {output.parent}.")
    if output.suffix == ".safetensors" and len(json.dumps(json.dumps(paths))) > MAX_SAFETENSORS_HEADER:
        raise StoreError(f"the paths of {len(paths):,} images are too long for safetensors: choose .npy or .parquet.")


def check_settings(path: str | Path, theirs: dict, ours: dict, tolerance: float) -> None:
    """Raise StoreError unless the rows at `path`, made with settings `theirs`, may stand beside rows of `ours`."""
    for key in ("normalize", "dtype"):
        if theirs[key] != ours[key]:
            raise StoreError(_other(path, f"{key} {theirs[key]}", f"{key} {ours[key]}"))
    old, new = np.array(theirs["probe"]), np.array(ours["probe"])
    if old.shape != new.shape or np.linalg.norm(old - new) > tolerance:
        raise StoreError(_other(path, f"another model ({theirs['model']})", ours["model"]))


def read_index(path: Path) -> tuple[dict | None, list[Record]]:
    """Read settings and records up to the first line that is not whole; no settings where there are none."""
    settings, records = None, []
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                if settings is None:
                    settings = entry
                else:
                    records.append(Record(*entry))
    return settings, records


def _as_json(entry: dict | Record) -> str:
    return json.dumps(entry) + "\n"


def _other(path: str | Path, theirs: str, ours: str) -> str:
    return f"{path} was made with {theirs}, not {ours}: pass --restart to begin anew, or choose another output."


__all__ = [
    "FORMATS",
    "FeatureStore",
    "Record",
    "StoreError",
    "as_line",
    "check_output",
    "check_settings",
    "read_index",
    "scan",
]
