"""Images of folders, patterns, tars and tables, listed one after the other without being read."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..utils.packages import require
from ..utils.places import Place, place_at, reaching
from ..utils.text import as_line
from .images import ImageRef, file_version, is_image_file, left_out
from .rows import IMAGE_COLUMNS, DataError
from .tables import read_table
from .tars import read_tars

# columns of embeddings, which a column of the source may not replace
OWN = ("key", "path", "embedding", "text_embedding", "error", "version")
LISTS = (".csv", ".tsv", ".jsonl", ".txt")  # tables of text, and lists of one path a line
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
Located = tuple[ImageRef, dict[str, Any]]  # an image, and its values in the other columns of the source


@dataclass(frozen=True)
class ImageSource:
    """Images to embed.

    Args:
        name: The source as the user wrote it.
        columns: The Arrow types of the columns besides the image, by name.
        images: Yields the images, each with its values in these columns. Archives that are cut short are reported to
            its argument and passed over.
        count: The number of images, where that is known beforehand.
        folder: The folder or the address that names count from.
        listed: True where `images` costs nothing, so that a run may go through it twice.
        unread: A sentence on images that are not read; empty without any.
    """

    name: str
    columns: dict[str, Any]
    images: Callable[[Callable[[str], None]], Iterator[Located]]
    count: int | None = None
    folder: str | None = None
    listed: bool = False
    unread: str = ""


def open_source(
    source: str,
    image_column: str | None = None,
    key_column: str | None = None,
    text_column: str | None = None,
    allow_schemes: Collection[str] = (),
) -> ImageSource:
    """Find the images of a folder, a pattern, tars, or parquet files, at paths or addresses such as s3://bucket/photos.

    Args:
        source: A folder of images, tars or parquet files; one such file; or a pattern of files of one kind.
        image_column: The column of a parquet file with the bytes, paths or addresses of images.
        key_column: The column of a parquet file that identifies an image; the number of the row unless given.
        text_column: A column of captions, which must be there.
        allow_schemes: Kinds of addresses that a table may name besides http, https and data, such as s3; "file" for
            paths outside of the table's folder.

    Raises:
        DataError: There are no images, or a column is missing.
    """
    place = place_at(source)
    with reaching(place):
        root, files = _listed(source, place)
    kinds = {kind: [entry for entry in files if _kind(entry[0]) == kind] for kind in ("image", "tar", "parquet")}
    unread = left_out((file.path for file, _ in files), root.path, root.is_local)
    lists = [] if root == place else [entry for entry in files if _kind(entry[0]) == "list"]
    if root != place and (compressed := [file for file, _ in files if file.path.lower().endswith(COMPRESSED_TARS)]):
        raise DataError(f"{compressed[0]} is a compressed tar, which cannot be read by member: unpack it to a .tar")
    if sum(map(bool, kinds.values())) > 1:
        there = ", ".join(f"{len(entries):,} of kind {kind}" for kind, entries in kinds.items() if entries)
        raise DataError(f"{source} has files of several kinds, {there}: give a pattern of one kind")
    if kinds["parquet"]:
        found = _tables(source, root, kinds["parquet"], image_column, key_column, allow_schemes)
    elif kinds["tar"]:
        found = _tars(source, root, kinds["tar"])
    elif lists and not kinds["image"]:
        found = _lists(source, root, lists, image_column, key_column, allow_schemes)
    elif unread and not kinds["image"]:
        raise DataError(f"there are no images in {source} that can be read: {unread}")
    else:
        found = _files(source, root, kinds["image"])
    if text_column is not None and text_column not in found.columns:
        known = ", ".join(found.columns) or "none besides images"
        raise DataError(f"{source} has no column {text_column}: it has {known}")
    return replace(found, folder=str(root), unread=unread)


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
    """Return text that changes with a file: its size and the time or tag that its file system gives."""
    if "mtime" in info and "ino" in info:  # a local file, whose listing tells no nanoseconds
        return file_version(info["name"])
    tag = next((info[name] for name in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(name)), "")
    return f"{info.get('size')}-{tag}"


def _kind(file: Place) -> str:
    name = file.path.rpartition("/")[2]
    if is_image_file(name):
        return "image"
    suffix = os.path.splitext(name)[1].lower()
    return "list" if suffix in LISTS else {".tar": "tar", ".parquet": "parquet"}.get(suffix, "")


# --- kinds ------------------------------------------------------------------------------------------------------------


def _files(name: str, root: Place, files: list[tuple[Place, str]]) -> ImageSource:
    if not files:
        raise DataError(f"there are no images in {name}")
    _check_unique(name, (as_line(_below(file, root)) for file, _ in files), "rename one of the files")

    def images(_: Callable[[str], None]) -> Iterator[Located]:
        for file, version in files:
            path = _below(file, root)
            yield ImageRef(str(file), path, as_line(path), version), {}

    return ImageSource(name, {}, images, len(files), listed=True)


def _tars(name: str, root: Place, files: list[tuple[Place, str]]) -> ImageSource:
    require("pyarrow", "parquet", name)
    import pyarrow as pa

    if not root.is_local:
        raise DataError(f"{name} is not on this machine: copy or mount tars, which are read member by member")

    def images(report: Callable[[str], None]) -> Iterator[Located]:
        for file, version in files:
            try:
                seen: set[str] = set()
                for sample in read_tars([Path(file.path)]):
                    path = _below(file, root) + sample["image"].name.removeprefix(file.path)
                    image = replace(sample["image"], name=path, key=as_line(path), stamp=version)
                    if image.key in seen:
                        raise DataError(f"{name} has two images {image.key}: give each member a name of its own")
                    seen.add(image.key)
                    yield image, {"text": _joined(sample["text"]), "label": sample["label"]}
            except (DataError, OSError) as error:
                report(str(error))

    return ImageSource(name, {"text": pa.string(), "label": pa.string()}, images)


def _joined(text: Any) -> str | None:
    return "\n".join(text) if isinstance(text, list) else text


def _tables(
    name: str,
    root: Place,
    files: list[tuple[Place, str]],
    image_column: str | None,
    key_column: str | None,
    schemes: Collection[str],
) -> ImageSource:
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
    # paths and addresses are worth keeping, bytes are not
    hidden = {*OWN, image}
    columns = {field.name: field.type for field in schemas[0] if field.name not in hidden}
    for (file, _), schema in zip(files, schemas, strict=True):
        for column in filter(None, (image, key_column, *columns)):
            if column not in schema.names:
                raise DataError(f"{file} has no column {column}: it has {', '.join(schema.names)}")
    if key_column is not None:
        advice = f"choose another --key-column than {key_column}, or leave it out"
        _check_unique(name, _keys((file for file, _ in files), key_column), advice)

    def images(_: Callable[[str], None]) -> Iterator[Located]:
        for file, version in files:
            yield from _rows(file, version, _below(file, root), image, key_column, list(columns), schemes)

    return ImageSource(name, columns, images, count)


def _lists(
    name: str,
    root: Place,
    files: list[tuple[Place, str]],
    image_column: str | None,
    key_column: str | None,
    schemes: Collection[str],
) -> ImageSource:
    require("pyarrow", "parquet", name)
    import pyarrow as pa

    if not root.is_local:
        raise DataError(f"{name} is not on this machine: copy it, or make it a parquet file")
    tables = [(file, version, _rows_of_list(Path(file.path))) for file, version in files]
    rows = [row for _, _, table in tables for row in table]
    if not rows:
        raise DataError(f"{name} has no rows: give at least one image")
    image = image_column or _only_known(list(rows[0]), name)
    for column in filter(None, (image, key_column)):
        if any(column not in row for row in rows):
            raise DataError(f"{name} has no column {column} in each row: it has {', '.join(rows[0])}")
    if key_column is not None:
        advice = f"choose another --key-column than {key_column}, or leave it out"
        _check_unique(name, (None if row[key_column] is None else str(row[key_column]) for row in rows), advice)
    columns = {column: pa.string() for column in rows[0] if column not in {*OWN, image}}

    def images(_: Callable[[str], None]) -> Iterator[Located]:
        for file, version, table in tables:
            for number, row in enumerate(table):
                key = str(row[key_column]) if key_column else f"{_below(file, root)}:{number}"
                cell = row[image]
                found = ImageRef.in_table(cell or "", os.path.dirname(file.path), None, schemes)
                values = {column: None if row.get(column) is None else str(row[column]) for column in columns}
                yield replace(found, name=str(cell or key), key=key, stamp=version), values

    return ImageSource(name, columns, images, len(rows))


def _rows_of_list(path: Path) -> list[dict[str, Any]]:
    """Read a table of text, or a list of one path a line, by its suffix."""
    if path.suffix.lower() != ".txt":
        return list(read_table(path))
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [{"image": line.strip()} for line in lines if line.strip()]


def _keys(files: Iterable[Place], column: str) -> Iterator[str | None]:
    import pyarrow.parquet as pq

    for file in files:
        with file.fs.open(file.path, "rb") as opened:
            for batch in pq.ParquetFile(opened).iter_batches(columns=[column]):
                yield from (None if key is None else str(key) for key in batch.column(0).to_pylist())


def _check_unique(name: str, keys: Iterable[str | None], advice: str) -> None:
    """Raise DataError for a key that is null or comes twice: one of the two images would replace the other."""
    seen: set[str] = set()
    for number, key in enumerate(keys):
        if key is None:
            raise DataError(f"row {number} of {name} has no key: {advice}")
        if key in seen:
            raise DataError(f"{name} has two images with the key {key[:200]}: {advice}")
        seen.add(key)


def _only_known(names: list[str], source: str) -> str:
    found = [name for name in names if name.lower() in (*IMAGE_COLUMNS, "bytes", "image_bytes", "image_url")]
    if len(found) != 1:
        what = f"several columns for images, {', '.join(found)}" if found else "no column that is known to hold images"
        raise DataError(f"{source} has {what}: pass --image-column with one of {', '.join(names)}")
    return found[0]


def _rows(
    file: Place,
    version: str,
    below: str,
    image: str,
    key_column: str | None,
    columns: list[str],
    schemes: Collection[str],
) -> Iterator[Located]:
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
                values = {name: row[name] for name in columns}
                if is_text:
                    found = ImageRef.in_table(row[image] or "", str(file).rpartition("/")[0], row[image], schemes)
                    yield replace(found, name=row[image] or key, key=key, stamp=version), values
                else:
                    yield ImageRef(str(file), key, key, version, cell=(image, group, place)), values
                number += 1


__all__ = ["OWN", "ImageSource", "Located", "open_source"]
