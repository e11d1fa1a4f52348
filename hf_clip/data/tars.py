"""Tar archives in the layout of webdataset: the files of one sample share a name up to the first dot."""

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .images import IMAGE_SUFFIXES, TarMember
from .rows import TEXT_COLUMNS, DataError


def read_tars(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield `image`, and `text` or `label` if known, of the samples in archives; images are located, not read.

    Lines of a `.txt` are captions. A `.cls` holds a label, a `.json` an object with captions or a label.

    Raises:
        DataError: An archive is compressed, cut short, or no tar.
    """
    for path in tqdm(paths, desc="archives", unit="archive", delay=2):
        yield from _samples(path)


def read_member(address: str) -> bytes:
    """Read the file at ARCHIVE.tar:NAME.

    Raises:
        DataError: The archive or the file in it is gone.
    """
    archive, _, name = address.partition(".tar:")
    try:
        with tarfile.open(f"{archive}.tar", "r:") as opened:
            member = opened.extractfile(name)
            return member.read() if member is not None else b""
    except (OSError, KeyError, tarfile.TarError) as error:
        raise DataError(f"there is no {address}: {error}") from error


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    key, sample = None, {}
    for member in _members(path):
        folder, _, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if not stem or not suffix:
            continue
        if (folder, stem) != key and "image" in sample:
            yield _columns(sample, path)
        if (folder, stem) != key:
            key, sample = (folder, stem), {}
        if f".{suffix.lower()}" in IMAGE_SUFFIXES:
            sample["image"] = member
        elif suffix.lower() in ("txt", "cls", "json"):
            sample[suffix.lower()] = member
    if "image" in sample:
        yield _columns(sample, path)


def _members(path: Path) -> Iterator[TarMember]:
    size, end = os.path.getsize(path), 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isfile():
                    yield TarMember(str(path), member.name, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise DataError(f"{path} is no uncompressed tar: {error}") from error
    if end + tarfile.BLOCKSIZE > size:  # what tarfile itself passes over: a block of zeros ends an archive
        raise DataError(f"{path} is cut short: copy it again")


def _columns(sample: dict[str, TarMember], path: Path) -> dict[str, Any]:
    columns: dict[str, Any] = {"image": sample["image"], "text": None, "label": None}
    try:
        if "json" in sample:
            known = json.loads(sample["json"].read())
            columns["text"] = next((known[name] for name in TEXT_COLUMNS if known.get(name)), None)
            columns["label"] = known.get("label")
        if "txt" in sample:
            columns["text"] = sample["txt"].read().decode().splitlines()
        if "cls" in sample:
            columns["label"] = sample["cls"].read().decode().strip()
    except (ValueError, AttributeError) as error:
        raise DataError(f"{sample['image']} comes with a text that can't be read: {error}") from error
    return columns


__all__ = ["read_member", "read_tars"]
