"""The manifest of an exported folder: which graph is which, and the model's configuration."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "hf_clip_export.json"
MANIFEST_FORMAT = "hf_clip export 2"


@dataclass(frozen=True)
class Manifest:
    """Contents of an exported folder; all paths are relative to it.

    Args:
        runtime: "onnx" or "openvino".
        target: The program whose file names are used.
        graphs: For each part ("vision", "text", "joint") and precision, the file of the graph.
        image_processor: The folder of the image processor's settings.
        tokenizer: The folder of the tokenizer's files.
        logit_scale: The logarithm of the factor on cosines.
        source: The model that was exported.
        config: Its configuration, from which HFCLIPConfig is made again.
    """

    runtime: str
    target: str
    graphs: dict[str, dict[str, str]]
    image_processor: str
    tokenizer: str
    logit_scale: float
    source: str
    config: dict[str, Any]

    def write(self, directory: Path) -> None:
        """Write the manifest into `directory`."""
        text = json.dumps({"format": MANIFEST_FORMAT, **asdict(self)}, indent=2)
        (directory / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def is_exported(directory: str | os.PathLike) -> bool:
    """Return True if `directory` is a folder that `export_clip` wrote."""
    return os.path.isfile(os.path.join(directory, MANIFEST))


def read_manifest(directory: str | os.PathLike) -> Manifest:
    """Read the manifest of an exported folder; raise ValueError if this version cannot read it."""
    path = Path(directory) / MANIFEST
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if entries.pop("format") != MANIFEST_FORMAT:
            raise KeyError("format")
        return Manifest(**entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a manifest that this hf_clip reads: export the model again") from error


__all__ = ["MANIFEST", "MANIFEST_FORMAT", "Manifest", "is_exported", "read_manifest"]
