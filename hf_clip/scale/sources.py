"""The images of folders, patterns, tars and tables, one after the other, located but not read."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..data.images import is_image_file
from ..data.rows import IMAGE_COLUMNS, DataError
from ..data.tars import read_tars
from ..embedding.parts import OWN
from ..embedding.store import as_line
from ..utils.packages import require
from ..utils.places import Place, place_at, reaching

# how images inside other files are addressed
TAR, PARQUET = "tar://", "parquet://"


@dataclass(frozen=True, slots=True)
class Item:
    """An image of a source.

    Args:
        key: What no two images of the source share, and stays the same from run to run.
        path: How people find the image.
        version: What changes with the image, or with the file that it lies in.
        image: What `read_image` reads.
        columns: The other columns that the source has.
    """

    key: str
    path: str
    version: str
    image: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Images to embed.

    Args:
        name: What the user called them.
        columns: The Arrow types of the columns besides the image, by name.
        items: Yields the images; archives that are cut short are told to its argument, and passed over.
        count: How many there are, where that is known beforehand.
        folder: The folder that relative paths count from, if it is on this machine.
    """

    name: str
    columns: dict[str, Any]
    items: Callable[[Callable[[str], None]], Iterator[Item]]
    count: int | None = None
    folder: str | None = None


def open_source(
    source: str, image_column: str | None = None, key_column: str | None = None, text_column: str | None = None
) -> Source:
    """Find the images of a folder, a pattern, tars, or parquet files, at paths or addresses such as s3://bucket/photos.

    Args:
        source: A folder of images, tars or parquet files; one such file; or a pattern of files of one kind.
        image_column: The column of a parquet file with the bytes, paths or addresses of images.
        key_column: The column of a parquet file that identifies an image; the number of the row unless given.
        text_column: A column of captions, which must be there.

    Raises:
        DataError: There are no images, or a column is missing.
    """
    place = place_at(source)
    with reaching(place):
        root, files = _listed(source, place)
    kinds = {kind: [entry for entry in files if _kind(entry[0]) == kind] for kind in ("image", "tar", "parquet")}
    if sum(map(bool, kinds.values())) > 1:
        there = ", ".join(f"{len(entries):,} of kind {kind}" for kind, entries in kinds.items() if entries)
        raise DataError(f"{source} has files of several kinds, {there}: give a pattern of one kind")
    if kinds["parquet"]:
        found = _tables(source, root, kinds["parquet"], image_column, key_column)
    elif kinds["tar"]:
        found = _tars(source, root, kinds["tar"])
    else:
        found = _files(source, root, kinds["image"])
    if text_column is not None and text_column not in found.columns:
        known = ", ".join(found.columns) or "none besides images"
        raise DataError(f"{source} has no column {text_column}: it has {known}")
    return replace(found, folder=root.path if root.is_local else None)


def _listed(source: str, place: Place) -> tuple[Place, list[tuple[Place, str]]]:
    """List files with their versions, sorted, and the folder that their keys count from; hidden ones are left out."""
    fs = place.fs
    if fs.isdir(place.path):
        root, found = place, fs.find(place.path, detail=True)
    elif fs.isfile(place.path):
        root, found = place._replace(path=place.path.rpartition("/")[0]), {place.path: fs.info(place.path)}
    elif set(source) & set("*?["):
        start = place.path.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0]
        root, found = place._replace(path=start), fs.glob(place.path, detail=True)
    else:
        raise DataError(f"there is no {source}: give a folder, a file, or a pattern of files")
    files = [(place._replace(path=path), _version(info)) for path, info in sorted(found.items())]
    return root, [(file, version) for file, version in files if not _is_hidden(file, root)]


def _is_hidden(file: Place, root: Place) -> bool:
    return any(part.startswith(".") for part in _below(file, root).split("/"))


def _below(file: Place, root: Place) -> str:
    return file.path.removeprefix(root.path).lstrip("/")


def _version(info: dict[str, Any]) -> str:
    """Return what changes with a file: its size and the time or tag that its file system gives."""
    if "mtime" in info and "ino" in info:
        try:
            stat = os.stat(info["name"])  # of what a link leads to, in nanoseconds
        except OSError:
            return "missing"
        return f"{stat.st_size}-{stat.st_mtime_ns}"
    tag = next((info[name] for name in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(name)), "")
    return f"{info.get('size')}-{tag}"


def _kind(file: Place) -> str:
    name = file.path.rpartition("/")[2]
    if is_image_file(name):
        return "image"
    return {".tar": "tar", ".parquet": "parquet"}.get(os.path.splitext(name)[1].lower(), "")


# --- kinds ------------------------------------------------------------------------------------------------------------


def _files(name: str, root: Place, files: list[tuple[Place, str]]) -> Source:
    if not files:
        raise DataError(f"there are no images in {name}")

    def items(_: Callable[[str], None]) -> Iterator[Item]:
        for file, version in files:
            path = as_line(_below(file, root))
            yield Item(path, path, version, str(file))

    return Source(name, {}, items, len(files))


def _tars(name: str, root: Place, files: list[tuple[Place, str]]) -> Source:
    require("pyarrow", "parquet", name)
    import pyarrow as pa

    if not root.is_local:
        raise DataError(f"{name} is not on this machine: copy or mount tars, which are read member by member")

    def items(report: Callable[[str], None]) -> Iterator[Item]:
        for file, version in files:
            try:
                for sample in read_tars([Path(file.path)]):
                    member = sample["image"]
                    path = as_line(f"{_below(file, root)}:{member.name}")
                    image = f"{TAR}{member.offset}+{member.size}/{file.path}"
                    yield Item(path, path, version, image, {"text": _joined(sample["text"]), "label": sample["label"]})
            except (DataError, OSError) as error:
                report(str(error))

    return Source(name, {"text": pa.string(), "label": pa.string()}, items)


def _joined(text: Any) -> str | None:
    return "\n".join(text) if isinstance(text, list) else text


def _tables(
    name: str, root: Place, files: list[tuple[Place, str]], image_column: str | None, key_column: str | None
) -> Source:
    require("pyarrow", "parquet", name)
    import pyarrow.parquet as pq

    schemas, count = [], 0
    for file, _ in files:
        try:
            with file.fs.open(file.path, "rb") as opened:
                metadata = pq.ParquetFile(opened)
                schemas.append(metadata.schema_arrow)
                count += metadata.metadata.num_rows
        except (OSError, ValueError) as error:
            raise DataError(f"{file} is no parquet file: {error}") from error
    image = image_column or _only_known(schemas[0].names, name)
    for (file, _), schema in zip(files, schemas, strict=True):
        for column in filter(None, (image, key_column)):
            if column not in schema.names:
                raise DataError(f"{file} has no column {column}: it has {', '.join(schema.names)}")
    # paths and addresses are worth keeping, bytes are not
    hidden = {*OWN, image}
    columns = {field.name: field.type for field in schemas[0] if field.name not in hidden}

    def items(_: Callable[[str], None]) -> Iterator[Item]:
        for file, version in files:
            yield from _rows(file, version, _below(file, root), image, key_column, list(columns))

    return Source(name, columns, items, count)


def _only_known(names: list[str], source: str) -> str:
    found = [name for name in names if name.lower() in (*IMAGE_COLUMNS, "bytes", "image_bytes", "image_url")]
    if len(found) != 1:
        what = f"several columns for images, {', '.join(found)}" if found else "no column that is known to hold images"
        raise DataError(f"{source} has {what}: pass --image-column with one of {', '.join(names)}")
    return found[0]


def _rows(
    file: Place, version: str, below: str, image: str, key_column: str | None, columns: list[str]
) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.fs.open(file.path, "rb") as opened:
        table = pq.ParquetFile(opened)
        kind = table.schema_arrow.field(image).type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        number = 0
        for group in range(table.num_row_groups):
            wanted = [*columns, *([image] if is_text else []), *([key_column] if key_column else [])]
            rows = table.read_row_group(group, list(dict.fromkeys(wanted))).to_pylist() if wanted else None
            for place in range(table.metadata.row_group(group).num_rows):
                row = rows[place] if rows else {}
                key = str(row[key_column]) if key_column else f"{below}:{number}"
                source = row[image] if is_text else f"{PARQUET}{group}+{place}+{image}/{file}"
                path = source if is_text and source else key
                yield Item(
                    key,
                    as_line(path),
                    version,
                    _located(source, file) if is_text else source,
                    {n: row[n] for n in columns},
                )
                number += 1


def _located(source: str | None, file: Place) -> str:
    """Resolve a relative path of a table against the table's folder."""
    from ..model.image_processing_hf_clip import is_address  # it imports PyTorch

    if not source or "://" in source or is_address(source) or os.path.isabs(source):
        return source or ""
    return str(file._replace(path=f"{file.path.rpartition('/')[0]}/{source}"))


# --- reading ----------------------------------------------------------------------------------------------------------


def read_image(source: Any) -> Any:
    """Read what an item's `image` addresses: bytes, or a path or an address for `open_image`."""
    from ..model.image_processing_hf_clip import is_address

    if not isinstance(source, str):
        return source
    if source.startswith(TAR):
        place, _, path = source.removeprefix(TAR).partition("/")
        offset, size = map(int, place.split("+"))
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    if source.startswith(PARQUET):
        place, _, path = source.removeprefix(PARQUET).partition("/")
        group, row, column = place.split("+", 2)
        return _cell(_column(path, int(group), column)[int(row)].as_py())
    if "://" in source and not is_address(source):
        remote = place_at(source)
        return remote.fs.cat_file(remote.path)
    return source


@lru_cache(maxsize=4)
def _column(path: str, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    file = place_at(path)
    with file.fs.open(file.path, "rb") as opened:
        return pq.ParquetFile(opened).read_row_group(group, [column])[column]


def _cell(value: Any) -> Any:
    """Return the bytes of a cell, which `datasets` stores beside a path."""
    if isinstance(value, dict):
        return value.get("path") if value.get("bytes") is None else value["bytes"]
    return value


__all__ = ["Item", "Source", "open_source", "read_image"]
