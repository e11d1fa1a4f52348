"""Embeddings in one file, written in as many runs as it takes.

A run appends to two files beside the output: OUTPUT.partial, the rows as float32, and OUTPUT.partial.jsonl, the
settings and then one record per row. However a run ends, every row that is complete in both files is kept. A finished
output has its settings and records in OUTPUT.index.jsonl, so that later runs embed only new images.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from ..utils.files import file_record, matches_record, replacing
from ..utils.objects import parse_json
from ..utils.text import as_line
from .stores import OUTPUT_SUFFIXES, StoreError, check_settings, parse_settings

FILE_CHUNK = 4096  # rows that are in memory at a time
MARK = "new"  # of files that are being written; a lock keeps other processes off
DTYPE = np.dtype("<f4")
# the safetensors library refuses headers of over 100 MB
MAX_SAFETENSORS_HEADER = 90_000_000


class Record(NamedTuple):
    """One row of a file: the image's name and version, and its key where that is not the name as one line."""

    path: str
    version: str
    key: str


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
        for batch in file.iter_batches(FILE_CHUNK, columns=["embedding"]):
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
        while len(chunk := np.fromfile(file, DTYPE, FILE_CHUNK * dim)):
            yield chunk


class Format(NamedTuple):
    """Functions that write and read one kind of file, a chunk of rows at a time."""

    write: Callable[[Path, Iterable[np.ndarray], Sequence[str], dict], None]
    read: Callable[[Path, dict], Iterator[np.ndarray]]


FORMATS = {
    ".safetensors": Format(write_safetensors, read_safetensors),
    ".npy": Format(write_npy, read_npy),
    ".parquet": Format(write_parquet, read_parquet),
}


class FileStore:
    """Open one file to resume it and to write embeddings, in a `with`; see `stores.EmbeddingStore`.

    Args:
        output: The file, with one of `OUTPUT_SUFFIXES`; it stays as it is until `finish` replaces it.
        settings: What all rows have in common: `dim`, `model`, `dtype`, `normalize`, and `probe`, an embedding of
            length 1 by which the model is known.
        tolerance: The largest distance between two probes of one model.
        restart: Forget the rows of earlier runs.

    Raises:
        StoreError: The output has other settings, is being written by another process, or was made by something else.
    """

    keeps_order = holds_all = True

    def __init__(self, output: Path, settings: dict[str, Any], tolerance: float, restart: bool = False):
        self.output, self.settings, self._tolerance = output, settings, tolerance
        self.partial = Path(f"{output}.partial")
        self._partial_index, self._index = Path(f"{output}.partial.jsonl"), index_path(output)
        self._restart = restart
        self._row_bytes = settings["dim"] * DTYPE.itemsize
        self._open_files = ExitStack()
        self._files: list[BinaryIO] = []
        self._appending = Lock()

    def __enter__(self) -> "FileStore":
        lock = self.output.with_name(f".{self.output.name}.lock")
        with ExitStack() as stack:
            try:
                stack.enter_context(FileLock(lock, timeout=0))
            except Timeout:
                raise StoreError(f"another process is writing {self.output}: wait for it, or stop it") from None
            stack.callback(_remove_held, lock)
            if self._restart:
                self._delete_partial()
            self._records = self._read()
            self._rows = {record.key: row for row, record in enumerate(self._records)}
            self._open_files = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open_files.__exit__(*error)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The path of the output."""
        return str(self.output)

    @property
    def unfinished(self) -> str:
        """The path of the rows that a stopped run leaves."""
        return str(self.partial)

    def takes(self, key: str) -> bool:
        """Return True: one run embeds all images."""
        return True

    def done(self, retry_errors: bool = False) -> dict[str, str]:
        """Return the version of each image that has a row; failed images have none, so every run tries them again."""
        return {key: self._records[row].version for key, row in self._rows.items()}

    def append(self, batch: Mapping[str, Any]) -> None:
        """Write the rows of a batch whose images could be read."""
        good = [error is None for error in batch["error"]]
        names = zip(batch["path"], batch["version"], batch["key"], strict=True)
        records = [Record(*name) for name, is_good in zip(names, good, strict=True) if is_good]
        if not records:
            return
        embeds = np.ascontiguousarray(np.asarray(batch["embedding"])[good], DTYPE)
        with self._appending:  # rows and records go side by side, whichever thread brings them
            self._open()
            rows, index = self._files
            rows.write(embeds.tobytes())
            rows.flush()
            index.write("".join(map(_as_json, records)).encode())
            index.flush()
            for record in records:
                self._rows[record.key] = len(self._records)
                self._records.append(record)

    def flush(self) -> None:
        """Nothing is left to flush: each batch is written at once."""

    def finish(self, order: list[str], gone: Mapping[str, str], changed: Mapping[str, str]) -> int:
        """Write the rows as the output, in the order of `order`, unless it holds just these already.

        Args:
            order: The keys of all images that the source has.
            gone: Versions of images that the source has no more.
            changed: Versions of rows whose images have changed since.

        Returns:
            The number of rows of earlier runs that are dropped.
        """
        keys = [key for key in dict.fromkeys([*order, *self._rows]) if self._is_current(key, gone, changed)]
        rows = [self._rows[key] for key in keys]
        dropped = len(self._records) - len(rows)
        if self._unfinished or rows != list(range(len(self._records))):
            self._write(rows)
        return dropped

    def _is_current(self, key: str, gone: Mapping[str, str], changed: Mapping[str, str]) -> bool:
        if key not in self._rows:
            return False
        return self._records[self._rows[key]].version not in (gone.get(key), changed.get(key))

    def _write(self, rows: list[int]) -> None:
        self._open()
        records = [self._records[row] for row in rows]
        paths = [record.path for record in records]
        check_header(self.output, paths)
        # all files are complete before the first takes its place, and the index knows the output that it belongs to
        with ExitStack() as stack:
            work = stack.enter_context(replacing(self.output, MARK))
            FORMATS[self.output.suffix].write(work, self._chunks(np.array(rows, int)), paths, self.settings)
            if self.output.suffix == ".npy":
                names = stack.enter_context(replacing(self.output.with_suffix(".paths.txt"), MARK))
                names.write_text("".join(f"{as_line(path)}\n" for path in paths), encoding="utf-8")
            self._write_index(self._index, records, file_record(work))
        self._delete_partial()

    def _read(self) -> list[Record]:
        """Return the records of earlier runs, in the order of their rows."""
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
                f"{self.output} exists, without the {self._index.name} that identifies its model: pass --restart to "
                "replace it, or choose another output"
            )
        self._check(settings, self.output)
        if not belongs(self.output, settings):
            raise StoreError(
                f"{self.output} does not have the rows that {self._index.name} lists: pass --restart to replace it"
            )
        return records

    def _check(self, settings: dict, path: Path) -> None:
        check_settings(path, settings, self.settings, self._tolerance)

    def _open(self) -> None:
        """Open partial files that hold all rows of earlier runs, and no torn one, to append to."""
        if self._files:
            return
        if self._unfinished:
            with self.partial.open("ab") as file:
                file.truncate(len(self._records) * self._row_bytes)
        else:
            with self.partial.open("wb") as file:
                if self._records:
                    for chunk in FORMATS[self.output.suffix].read(self.output, self.settings):
                        file.write(chunk.tobytes())
            if self.partial.stat().st_size != len(self._records) * self._row_bytes:
                self.partial.unlink()
                raise StoreError(
                    f"{self.output} does not have the rows that {self._index.name} lists: pass --restart to replace it"
                )
        self._write_index(self._partial_index, self._records)
        self._unfinished = True
        self._files = [self._open_files.enter_context(path.open("ab")) for path in (self.partial, self._partial_index)]

    def _chunks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(rows), FILE_CHUNK):
            # mapped anew each time: the pages of one map would pile up in memory
            mapped = np.memmap(self.partial, DTYPE, "r", shape=(len(self._records), self.settings["dim"]))
            yield mapped[rows[start : start + FILE_CHUNK]]

    def _write_index(self, path: Path, records: Iterable[Record], output: Mapping[str, Any] | None = None) -> None:
        with replacing(path, MARK) as work, work.open("w", encoding="utf-8") as file:
            file.write(json.dumps(self.settings | ({"output": output} if output else {})) + "\n")
            file.writelines(map(_as_json, records))

    def _delete_partial(self) -> None:
        while self._files:  # Windows removes no open file
            self._files.pop().close()
        self._partial_index.unlink(missing_ok=True)  # first: rows without an index count for nothing
        self.partial.unlink(missing_ok=True)


def _remove_held(lock: Path) -> None:
    """Remove the file of a lock that is held; on Windows, filelock does it when the lock is released."""
    with suppress(PermissionError):
        lock.unlink(missing_ok=True)


def index_path(output: Path) -> Path:
    """Return the file that lists the rows of a finished output."""
    return Path(f"{output}.index.jsonl")


def check_file(output: Path) -> None:
    """Raise StoreError, before any work, for an output that cannot be written."""
    if output.suffix not in OUTPUT_SUFFIXES:
        raise StoreError(f"{output} has the suffix {output.suffix or 'of a folder'}: use {', '.join(OUTPUT_SUFFIXES)}")
    if output.is_dir():
        raise StoreError(f"cannot write {output}: it is a folder")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {output}: {error}") from error
    if not os.access(output.parent, os.W_OK):
        raise StoreError(f"cannot write {output}: no permission to write in {output.parent}")


def check_header(output: Path, paths: Sequence[str]) -> None:
    """Raise StoreError for a .safetensors whose header the library would refuse to read."""
    if output.suffix == ".safetensors" and len(json.dumps(json.dumps(paths))) > MAX_SAFETENSORS_HEADER:
        raise StoreError(f"the paths of {len(paths):,} images are too long for safetensors: choose .npy or .parquet")


def read_index(path: Path) -> tuple[dict | None, list[Record]]:
    """Read settings and records up to the first line that is torn; no settings where there are none."""
    settings, records = None, []
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                try:
                    entry = parse_json(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                if settings is None:
                    settings = parse_settings(line, path)
                elif not _is_record(entry):
                    raise StoreError(f"{path} is broken: its row {len(records)} names no image")
                else:
                    records.append(_as_record(*entry))
    return settings, records


def belongs(output: Path, settings: Mapping[str, Any]) -> bool:
    """Return True if an output is the one that was written with an index of these settings.

    They are two files: a process that is killed may leave a new one beside an old one. Indexes of hf_clip 0.1 do not
    tell.
    """
    record = settings.get("output")
    return record is None or (isinstance(record, dict) and matches_record(output, record))


def known_file_settings(output: Path) -> dict[str, Any] | None:
    """Return the settings of earlier runs into a file, None where there are none."""
    for path in (Path(f"{output}.partial.jsonl"), index_path(output)):
        if path.exists() and (path != index_path(output) or output.exists()):
            with path.open("rb") as file:
                try:
                    return parse_settings(file.readline(), path)
                except StoreError:
                    return None
    return None


def _is_record(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
        return False
    return all(type(value) is int for value in entry[1:]) or all(isinstance(value, str) for value in entry[1:])


def _as_record(path: str, first: int | str, second: int | str) -> Record:
    """Parse a line of an index: [path, size, time in ns] of a file, [path, version, key] of other images."""
    if isinstance(first, str):
        return Record(path, first, str(second))
    return Record(path, "missing" if first < 0 else f"{first}-{second}", as_line(path))


def _as_json(record: Record) -> str:
    is_plain = record.key == as_line(record.path) and re.fullmatch(r"\d+-\d+", record.version)
    rest = map(int, record.version.split("-")) if is_plain else (record.version, record.key)
    return json.dumps([record.path, *rest]) + "\n"


__all__ = [
    "FORMATS",
    "FileStore",
    "Record",
    "belongs",
    "check_file",
    "check_header",
    "index_path",
    "known_file_settings",
    "read_index",
]
