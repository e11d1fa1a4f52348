"""The manifest of an exported folder: which graph is which, and the model's configuration."""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..utils.objects import check_fields, parse_object

MANIFEST = "hf_clip_export.json"
MANIFEST_FORMAT = "hf_clip export 2"
RUNTIMES = ("onnx", "openvino")
MANIFEST_FIELDS = {
    "format": str, "runtime": str, "target": str, "graphs": dict, "image_processor": str, "tokenizer": str,
    "logit_scale": int | float, "source": str, "config": dict,
}  # fmt: skip
# the original stops at log(100); larger sizes than these are no CLIP's
MAX_LOGIT_SCALE, MAX_SIZE = 20.0, 1 << 20


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
        entries = parse_object(path.read_text(encoding="utf-8"), MANIFEST_FIELDS)
        if entries.pop("format") != MANIFEST_FORMAT:
            raise ValueError("its format is another")
        manifest = Manifest(**entries)
        _check(manifest)
        return manifest
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not a manifest that this hf_clip reads ({error}): export the model again"
        ) from error


def _check(manifest: Manifest) -> None:
    """Raise ValueError for a runtime or a size that no export has, or a file outside of the folder."""
    if manifest.runtime not in RUNTIMES or abs(manifest.logit_scale) > MAX_LOGIT_SCALE:
        raise ValueError(f"its runtime is {manifest.runtime!r:.40}, its logit_scale {manifest.logit_scale:g}")
    check_fields(manifest.graphs, dict.fromkeys(manifest.graphs, dict))
    names = [manifest.image_processor, manifest.tokenizer]
    for files in manifest.graphs.values():
        check_fields(files, dict.fromkeys(files, str))
        names += files.values()
    for name in names:
        # as either system writes paths: a folder is copied from one to the other
        if ".." in re.split(r"[/\\]", name) or "\0" in name or re.match(r"[/\\]|\w:", name):
            raise ValueError(f"it names {name!r:.60}, outside of the folder")
    config = manifest.config
    check_fields(config, {"vision_config": dict, "text_config": dict, "projection_dim": int})
    check_fields(config["vision_config"], {"image_size": int})
    check_fields(config["text_config"], {"max_position_embeddings": int})
    sizes = (config["vision_config"]["image_size"], config["text_config"]["max_position_embeddings"])
    if not all(1 <= size <= MAX_SIZE for size in (*sizes, config["projection_dim"])):
        raise ValueError("its config has sizes that no model has")


__all__ = ["MANIFEST", "MANIFEST_FORMAT", "Manifest", "is_exported", "read_manifest"]
