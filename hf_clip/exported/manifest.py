"""What an exported folder holds, as its manifest tells."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "hf_clip_export.json"
FORMAT = "hf_clip export 1"


@dataclass(frozen=True)
class Manifest:
    """Describe an exported folder.

    `graphs` has one file for each part ("vision", "text", "joint") and precision; `image_processor` and `tokenizer` are
    the folders of their settings. All paths are relative to the folder.
    """

    runtime: str
    layout: str
    graphs: dict[str, dict[str, str]]
    image_processor: str
    tokenizer: str
    logit_scale: float
    source: str
    config: dict[str, Any]

    def write(self, directory: Path) -> None:
        """Write the manifest into `directory`."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        (directory / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def is_exported(directory: str | os.PathLike) -> bool:
    """Return True if `directory` is a folder that `export_clip` wrote."""
    return os.path.isfile(os.path.join(directory, MANIFEST))


def read_manifest(directory: str | os.PathLike) -> Manifest:
    """Read the manifest of an exported folder; raise ValueError if it is not one that this version reads."""
    path = Path(directory) / MANIFEST
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if entries.pop("format") != FORMAT:
            raise KeyError("format")
        return Manifest(**entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a manifest that this hf_clip reads: export the model again") from error


__all__ = ["FORMAT", "MANIFEST", "Manifest", "is_exported", "read_manifest"]
