"""The interface of the two stores, a directory of parts and one file, and the errors of both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..utils.objects import check_fields, parse_object

# files that one file of embeddings may be
OUTPUT_SUFFIXES = (".safetensors", ".npy", ".parquet")
# how images are read: settings that are recorded unless they have these values, as in files of earlier versions
READING = {"exif": "ignore", "decode": "full"}
# what identifies the model of stored embeddings
SETTINGS_FIELDS = {"model": str, "dtype": str, "normalize": bool, "dim": int, "probe": [int | float]}
MAX_DIM = 1 << 20


class StoreError(ValueError):
    """Raised for an output that cannot take these embeddings."""


class EmbeddingStore(Protocol):
    """Embeddings on disk: those of earlier runs, and those to come.

    A store is opened in a `with`, which keeps other processes off. However a run ends, whatever was appended counts.
    """

    settings: dict[str, Any]
    keeps_order: bool  # whether `finish` needs the order of all keys

    @property
    def holds_all(self) -> bool:
        """True where this run embeds all images, False for one shard of them."""

    @property
    def name(self) -> str:
        """The output as the user wrote it."""

    @property
    def unfinished(self) -> str:
        """The path of a stopped run's unfinished output."""

    def takes(self, key: str) -> bool:
        """Return True if the image `key` belongs to this run."""

    def done(self, retry_errors: bool = False) -> dict[str, str]:
        """Return the version of each image that earlier runs embedded; of failed ones too, unless to be retried."""

    def append(self, batch: Mapping[str, Any]) -> None:
        """Add a batch of columns: `key`, `path`, `version`, `embedding`, `error`, and those of the source."""

    def flush(self) -> None:
        """Write the appended batches."""

    def finish(self, order: list[str], gone: Mapping[str, str], changed: Mapping[str, str]) -> int:
        """Complete the output; drop and count the rows of images that are gone or have changed."""


def parse_settings(text: str | bytes, path: Any) -> dict[str, Any]:
    """Parse the settings of stored embeddings; raise StoreError, with their `path`, if they do not identify a model."""
    try:
        settings = parse_object(text, SETTINGS_FIELDS)
        if not 1 <= settings["dim"] <= MAX_DIM:
            raise ValueError(f"its dim is {settings['dim']}")
        check_fields({"text_column": None, **settings}, {"text_column": str | None})
    except ValueError as error:
        raise StoreError(f"{path} is broken: {error}") from error
    return settings


def is_directory(output: str) -> bool:
    """Return True if an output is a directory of parts: an address, a directory, or a name without a suffix."""
    path = Path(output)
    return "://" in output or (path.suffix not in OUTPUT_SUFFIXES and (path.is_dir() or not path.suffix))


def check_settings(path: str | Path, theirs: dict, ours: dict, tolerance: float) -> None:
    """Raise StoreError unless the rows at `path`, made with settings `theirs`, may stand beside rows of `ours`."""
    for key in ("normalize", "dtype"):
        if theirs[key] != ours[key]:
            raise StoreError(_other(path, f"{key} {theirs[key]}", f"{key} {ours[key]}"))
    for key, default in READING.items():
        if (old := theirs.get(key, default)) != (new := ours.get(key, default)):
            raise StoreError(_other(path, f"{key} {old}", f"{key} {new}"))
    old, new = np.array(theirs["probe"]), np.array(ours["probe"])
    if old.shape != new.shape or np.linalg.norm(old - new) > tolerance:
        raise StoreError(_other(path, f"another model ({theirs['model']})", ours["model"]))


def _other(path: str | Path, theirs: str, ours: str) -> str:
    return f"{path} was made with {theirs}, not {ours}: pass --restart to begin anew, or choose another output"


__all__ = [
    "OUTPUT_SUFFIXES",
    "READING",
    "EmbeddingStore",
    "StoreError",
    "check_settings",
    "is_directory",
    "parse_settings",
]
