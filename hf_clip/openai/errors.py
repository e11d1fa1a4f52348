"""Exceptions for checkpoints that cannot be read, and for downloads that fail."""

from pathlib import Path

from ..utils.text import printable


class CheckpointError(ValueError):
    """Raised for a name or a file that no CLIP weights can be read from.

    Messages quote names out of the file, so they are made printable here, once for every program that shows them.
    """

    def __init__(self, message: object):
        super().__init__(printable(message))


def check_converted(folder: Path) -> None:
    """Raise CheckpointError unless `folder` is one that `convert` or `save_pretrained` wrote."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file, not a converted folder: make one with hf-clip convert")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no converted folder: it has no config.json")


class DownloadError(RuntimeError):
    """Raised for a published checkpoint that could not be fetched, verified or stored."""


__all__ = ["CheckpointError", "DownloadError", "check_converted"]
