"""What can be wrong with a checkpoint, or with fetching one."""

from pathlib import Path


class CheckpointError(ValueError):
    """Raised for a name or a file that no CLIP weights can be read from."""


def check_converted(folder: Path) -> None:
    """Raise CheckpointError unless `folder` is one that `convert` or `save_pretrained` wrote."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file, not a converted folder: make one with hf-clip convert")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no converted folder: it has no config.json")


class DownloadError(RuntimeError):
    """Raised for a published checkpoint that could not be fetched, verified or stored."""


__all__ = ["CheckpointError", "DownloadError", "check_converted"]
