"""Tar archives in the layout of webdataset: the files of one sample share a name up to the first dot."""

import io
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..utils.text import as_line
from .images import IMAGE_SUFFIXES, ImageRef, read_span
from .rows import TEXT_COLUMNS, DataError, MultiHot

SIDECARS = ("json", "txt", "cls")  # suffixes of what is said of an image


def read_tars(paths: Sequence[Path], several: bool = False) -> Iterator[dict[str, Any]]:
    """Yield `image`, and `text` or `label` if known, of the samples in archives; images are located, not read.

    Lines of a `.txt` are captions. A `.cls` holds a label, a `.json` an object with captions or a label. A sample
    without an image such as `x.jpg` has one for each part, such as `x.input.jpg`.

    Args:
        paths: The archives.
        several: Read labels of images that show several classes: a `.npy` of 0 or 1 for each, as clip_benchmark has
            them of VOC 2007. Any other `.npy` is passed over.

    Raises:
        DataError: An archive is compressed, cut short, or no tar.
    """
    for path in tqdm(paths, desc="archives", unit="archive", delay=2):
        yield from _samples(path, (*SIDECARS, "npy") if several else SIDECARS)


def find_image(name: str, folder: str = "", schemes: Collection[str] = ()) -> ImageRef:
    """Find an image again by the `name` that its reference had; opening it fails where it is gone.

    Args:
        name: A path below the folder, an address, or ARCHIVE:MEMBER.
        folder: The folder or the address that the name counts from.
        schemes: Kinds of addresses that may be read, as in `ImageRef.of`.
    """
    image = ImageRef.of(folder, None, schemes) if "://" in folder else None
    if image is not None and image.refused is not None:
        return image
    image = ImageRef.in_table(name, folder, name, schemes)
    path = image.source
    if image.refused is not None:
        return image
    for colon in re.finditer(":", path):
        archive, member = path[: colon.start()], path[colon.end() :]
        if not os.path.exists(path) and os.path.isfile(archive):
            with suppress(KeyError, tarfile.TarError), tarfile.open(archive, "r:") as opened:
                return _reference(archive, opened.getmember(member))
    return image


def _reference(archive: str | os.PathLike[str], info: tarfile.TarInfo) -> ImageRef:
    name = f"{archive}:{info.name}"
    return ImageRef(os.fspath(archive), name, as_line(name), span=(info.offset_data, info.size))


def _samples(path: Path, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    key, sample = None, {}
    for member in _members(path):
        folder, _, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if not stem or not suffix:
            continue
        if (folder, stem) != key:
            yield from _rows_of(sample, path)
            key, sample = (folder, stem), {}
        if f".{suffix.lower()}" in IMAGE_SUFFIXES:
            sample["image"] = member
        elif f".{suffix.lower().rpartition('.')[2]}" in IMAGE_SUFFIXES:
            sample[suffix] = member
        elif suffix.lower() in kinds:
            sample[suffix.lower()] = member
    yield from _rows_of(sample, path)


def _rows_of(sample: dict[str, tarfile.TarInfo], path: Path) -> Iterator[dict[str, Any]]:
    """Yield the image of a sample, such as x.jpg; without it those of its parts, such as x.input.jpg."""
    parts = [member for suffix, member in sample.items() if "." in suffix]
    for image in [sample["image"]] if "image" in sample else parts:
        yield _columns({**sample, "image": image}, path)


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    size, end = os.path.getsize(path), 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isfile():
                    yield member
    except tarfile.TarError as error:
        raise DataError(f"{path} is no uncompressed tar: {error}") from error
    if end + tarfile.BLOCKSIZE > size:  # tarfile itself accepts it: a block of zeros ends an archive
        raise DataError(f"{path} is cut short: copy it again")


def _columns(sample: dict[str, tarfile.TarInfo], path: Path) -> dict[str, Any]:
    columns: dict[str, Any] = {"image": _reference(path, sample["image"]), "text": None, "label": None}
    texts = {kind: _content(path, sample[kind]) for kind in (*SIDECARS, "npy") if kind in sample}
    try:
        if "json" in texts:
            known = json.loads(texts["json"])
            columns["text"] = next((known[name] for name in TEXT_COLUMNS if known.get(name)), None)
            columns["label"] = known.get("label")
        if "txt" in texts:
            columns["text"] = texts["txt"].decode().splitlines()
        if "cls" in texts:
            columns["label"] = texts["cls"].decode().strip()
        if columns["text"] is None and columns["label"] is None and "npy" in texts:
            columns["label"] = multi_hot(texts["npy"])
    except (ValueError, AttributeError) as error:
        raise DataError(f"{columns['image'].name} comes with a text that cannot be read: {error}") from error
    return columns


def multi_hot(content: bytes) -> MultiHot | None:
    """Read the vector of a .npy file, without pickle; return None if it holds anything else than 0 and 1."""
    found = np.load(io.BytesIO(content), allow_pickle=False)
    is_label = found.ndim == 1 and bool(np.isin(found, (0, 1)).all())
    return MultiHot(found.astype(int).tolist()) if is_label else None


def _content(path: Path, info: tarfile.TarInfo) -> bytes:
    return read_span(os.fspath(path), info.offset_data, info.size)


__all__ = ["find_image", "read_tars"]
