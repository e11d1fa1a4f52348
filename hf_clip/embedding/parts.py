"""Embeddings of any number of images in a directory of parquet parts, written by as many runs as it takes.

A part is written whole or not at all, and holds per image `key`, `path`, the columns that the source has, `embedding`,
`error` (why there is no embedding) and `version` (which changes with the image). `_hf_clip.json` identifies the model.
An embedding that is missing is NaN: pyarrow before 26 cannot read a null among fixed-size lists in parquet.
A run embeds the images that finished parts do not hold; its last step drops rows of images that changed or are gone.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from ..utils.packages import require
from ..utils.places import Place, place_at, reaching, writing
from ..utils.text import as_line
from .arrow import as_matrix, part_table
from .stores import StoreError, check_settings, parse_settings

SETTINGS = "_hf_clip.json"
PART = re.compile(r"part-(\d+)-.*\.parquet")
# rows of a part, and those that are read at a time
PART_ROWS, PART_CHUNK = 10_000, 8192
# a part is written at the latest after so many seconds: as much is lost when a process is killed
PART_SECONDS = 60.0


class Shard(NamedTuple):
    """Shard `number` of `total`, from 1: an image belongs to the shard that its key selects."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}of{self.total}"

    @property
    def holds_all(self) -> bool:
        """True of the only shard."""
        return self.total == 1

    def holds(self, key: str) -> bool:
        """Return True if the image `key` belongs to this shard."""
        return self.holds_all or _number(key) % self.total == self.number - 1


WHOLE = Shard(1, 1)


def _number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


class PartStore:
    """Open a directory to resume it and to write parts, in a `with`; see `stores.EmbeddingStore`.

    Two runs may write at once if they are different shards of the same number.

    Args:
        output: A path or an address such as s3://bucket/folder.
        settings: What all rows have in common: those of a `FileStore`, and `row_dtype`.
        tolerance: The largest distance between two probes of one model.
        restart: Delete the parts of earlier runs.
        shard: The part of all images that this run embeds.
        part_rows: The rows of a part.
        columns: The Arrow types of the source's columns.
        drop_errors: Write no rows for images that failed; every run tries them again.

    Raises:
        StoreError: The directory holds something else, embeddings of another model, or is being written.
    """

    keeps_order = False

    def __init__(
        self,
        output: str,
        settings: Mapping[str, Any],
        tolerance: float,
        restart: bool = False,
        shard: Shard = WHOLE,
        part_rows: int = PART_ROWS,
        columns: Mapping[str, Any] | None = None,
        drop_errors: bool = False,
    ):
        require("pyarrow", "parquet", f"a directory of parts such as {output}")
        self.place, self.settings, self.shard = place_at(output), dict(settings), shard
        self.part_rows, self.columns = part_rows, dict(columns or {})
        self._tolerance, self._restart, self.drop_errors = tolerance, restart, drop_errors
        self._open = ExitStack()
        self._written = 0
        self._waiting: list[Any] = []
        self._began = time.monotonic()

    def __enter__(self) -> "PartStore":
        with ExitStack() as stack, reaching(self.place):
            self.place.fs.makedirs(self.place.path, exist_ok=True)
            self._lock(stack)
            self._prepare()
            self.run = 1 + max((int(_match(part)[1]) for part in part_places(self.place)), default=0)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The path or address of the directory."""
        return str(self.place)

    @property
    def unfinished(self) -> str:
        """The directory itself: a stopped run leaves finished parts."""
        return str(self.place)

    @property
    def holds_all(self) -> bool:
        """True where the directory is not divided into shards."""
        return self.shard.holds_all

    def takes(self, key: str) -> bool:
        """Return True if the image `key` belongs to this shard."""
        return self.shard.holds(key)

    def done(self, retry_errors: bool = False) -> dict[str, str]:
        """Return the version of each image of this shard in finished parts; failed ones too, unless to be retried."""
        found: dict[str, str] = {}
        for part in part_places(self.place):
            table = read_columns(part, ["key", "version", "error"])
            for key, version, error in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if self.shard.holds(key):
                    if retry_errors and error is not None:
                        found.pop(key, None)
                    else:
                        found[key] = version
        return found

    def part_name(self, label: str | None = None) -> str:
        """Return the name of the next part, or of the part with a `label` of its own."""
        self._written += 1
        return f"part-{self.run:05d}-{self.shard}-{f'{self._written:06d}' if label is None else label}.parquet"

    def append(self, batch: Mapping[str, Any]) -> None:
        """Add a batch to the part that is being filled; failed images are rows with an error."""
        if not self._waiting:
            self._began = time.monotonic()
        batch = {**batch, "path": list(map(as_line, batch["path"]))}
        table = part_table(batch, self.columns, self.settings["row_dtype"])
        self._waiting.append(without_errors(table) if self.drop_errors else table)
        is_full = sum(map(len, self._waiting)) >= self.part_rows
        if is_full or time.monotonic() - self._began > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the part that is being filled."""
        import pyarrow as pa

        if sum(map(len, self._waiting)):
            self.write(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting.clear()

    def write(self, table: Any) -> None:
        """Write a part; it is there as a whole or not at all."""
        write_part(self.place / self.part_name(), table)

    def finish(self, order: list[str], gone: Mapping[str, str], changed: Mapping[str, str]) -> int:
        """Drop the rows of images that are gone or have changed; see `stores.EmbeddingStore`."""
        if not (gone or changed or self._written):
            return 0
        return self.prune(lambda key, version: version not in (gone.get(key), changed.get(key)))

    def prune(self, keep: Callable[[str, str], bool]) -> int:
        """Drop the rows of this shard whose key and version `keep` refuses, and all but the newest of a key.

        Returns:
            How many rows were dropped.
        """
        seen: set[str] = set()
        dropped = 0
        with ExitStack() as stack:
            if self.place.is_local:
                stack.enter_context(FileLock((self.place / ".prune.lock").path))
            for part in reversed(part_places(self.place)):
                table = read_columns(part, ["key", "version"])
                good = [
                    not self.shard.holds(key) or (key not in seen and keep(key, version))
                    for key, version in zip(*(column.to_pylist() for column in table.columns), strict=True)
                ]
                seen.update(key for key, is_good in zip(table["key"].to_pylist(), good, strict=True) if is_good)
                dropped += len(good) - sum(good)
                _keep_rows(part, good)
        return dropped

    def _lock(self, stack: ExitStack) -> None:
        """Keep other processes off this shard, and runs that divide the images in another way off the directory."""
        if not self.place.is_local:
            return
        own = (self.place / f".{self.shard}.lock").path
        others = [path for path in self.place.fs.glob(f"{self.place.path}/.*of*.lock") if path != own]
        foreign = [path for path in others if not path.endswith(f"of{self.shard.total}.lock")]
        try:
            stack.enter_context(FileLock(own, timeout=0))
            stack.callback(Path(own).unlink, missing_ok=True)
            for path in foreign:
                with FileLock(path, timeout=0):
                    pass
        except Timeout:
            raise StoreError(f"another process is writing {self.place}: wait for it, or stop it") from None

    def _prepare(self) -> None:
        fs, settings = self.place.fs, self.place / SETTINGS
        if self._restart and fs.exists(settings.path):
            fs.rm_file(settings.path)  # first: parts without it count for nothing
            for part in part_places(self.place):
                fs.rm_file(part.path)
        if fs.exists(settings.path):
            theirs = read_settings(self.place)
            if theirs.get("row_dtype") != self.settings.get("row_dtype"):
                raise StoreError(
                    f"{self.place} holds rows of {theirs.get('row_dtype')}, not {self.settings.get('row_dtype')}: "
                    "pass the same --row-dtype, or choose another output"
                )
            check_settings(str(self.place), theirs, self.settings, self._tolerance)
        elif foreign := [name for name in _names(self.place) if not name.startswith(".")]:
            raise StoreError(
                f"{self.place} holds {foreign[0]} and no {SETTINGS} that identifies a model: choose an empty directory"
            )
        else:
            with writing(settings) as file:
                file.write(json.dumps(self.settings).encode())
        if self.place.is_local:
            for path in fs.glob(f"{self.place.path}/.part-*-{self.shard}-*.new"):  # of a process that was killed
                fs.rm_file(path)


def without_errors(table: Any) -> Any:
    """Drop the rows of a part whose image failed: some vector databases refuse their NaN."""
    import pyarrow.compute as pc

    return table.filter(pc.is_null(table["error"]))


def write_part(place: Place, table: Any) -> None:
    """Write a table as one part."""
    import pyarrow.parquet as pq

    with writing(place) as file:
        pq.write_table(table, file)


def read_settings(place: Place) -> dict[str, Any]:
    """Read the identity of the model that wrote a directory of parts.

    Raises:
        StoreError: There is no such file, or it is broken.
    """
    try:
        with place.fs.open((place / SETTINGS).path, "rb") as file:
            return parse_settings(file.read(), place / SETTINGS)
    except FileNotFoundError:
        raise StoreError(f"{place} has no {SETTINGS}: it is no directory of embeddings") from None


def part_places(place: Place) -> list[Place]:
    """List the finished parts of a directory, the oldest first."""
    return [place / name for name in sorted(_names(place)) if PART.fullmatch(name)]


def read_columns(part: Place, names: Sequence[str]) -> Any:
    """Read the named columns of a part, except those it does not have."""
    import pyarrow.parquet as pq

    with part.fs.open(part.path, "rb") as file:
        return pq.read_table(file, columns=list(names))


def iter_parts(place: Place, rows: int = PART_CHUNK, embedding: str = "embedding") -> Iterator[tuple[Any, np.ndarray]]:
    """Yield tables of up to `rows` images that have an embedding, and the embeddings (B, dim), a key once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    seen: set[str] = set()
    sizes: dict[str, int] = {}
    for part in part_places(place):
        with part.fs.open(part.path, "rb") as file:
            table_file = pq.ParquetFile(file)
            check_part(part, table_file.schema_arrow, ["key", "path", embedding], sizes)
            for batch in table_file.iter_batches(rows):
                keys = batch.column("key").to_pylist()
                fresh = np.array([key not in seen and not seen.add(key) for key in keys])  # type: ignore[func-returns-value]
                table = pa.table(batch)
                rows_read = as_matrix(table[embedding])
                good = fresh & ~np.isnan(rows_read).any(1)
                if good.any():
                    yield table.filter(pa.array(good)), rows_read[good]


def check_part(part: Place, schema: Any, columns: Sequence[str], sizes: dict[str, int]) -> None:
    """Raise StoreError for a part that lacks a column, or whose keys are no texts, or embeddings no lists of one size.

    Args:
        part: The part, which errors name.
        schema: Its Arrow schema.
        columns: The columns that it needs.
        sizes: The sizes of embeddings in earlier parts, by column; that of a new column is added.
    """
    import pyarrow as pa

    for name in columns:
        if name not in schema.names:
            raise StoreError(f"{part} has no column {name}: it has {', '.join(schema.names)}")
        kind = schema.field(name).type
        if name in ("embedding", "text_embedding"):
            is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
            if not (is_list and pa.types.is_floating(kind.value_type)):
                raise StoreError(f"{part} has {kind} in its column {name}, no embeddings: embed it again")
            size = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
            if size and sizes.setdefault(name, size) != size:
                raise StoreError(f"{part} has embeddings of {size} numbers, others of {sizes[name]}: embed it again")
        if name == "key" and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise StoreError(f"{part} has {kind} in its column key, no texts: embed it again")


def count_rows(place: Place) -> int:
    """Count the rows of all parts, failed images included, without reading them."""
    import pyarrow.parquet as pq

    total = 0
    for part in part_places(place):
        with part.fs.open(part.path, "rb") as file:
            total += pq.ParquetFile(file).metadata.num_rows
    return total


def _keep_rows(part: Place, good: Iterable[bool]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = list(good)
    if not any(good):
        part.fs.rm_file(part.path)
    elif not all(good):
        with part.fs.open(part.path, "rb") as file:
            table = pq.read_table(file)
        write_part(part, table.filter(pa.array(good)))


def _names(place: Place) -> list[str]:
    try:
        paths = place.fs.ls(place.path, detail=False, refresh=True)
    except FileNotFoundError:  # in an object store a folder without objects does not exist
        return []
    return [path.rstrip("/").rpartition("/")[2] for path in paths]


def _match(part: Place) -> re.Match:
    found = PART.fullmatch(part.path.rpartition("/")[2])
    assert found is not None
    return found


__all__ = [
    "PART_ROWS",
    "WHOLE",
    "PartStore",
    "Shard",
    "check_part",
    "count_rows",
    "iter_parts",
    "part_places",
    "read_columns",
    "read_settings",
    "without_errors",
    "write_part",
]
