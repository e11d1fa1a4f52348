"""Check of an exported folder: its graphs are measured again and compared with parity.json."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..exported.manifest import read_manifest
from ..exported.sessions import OPEN
from .engine import file_bytes, load_source
from .measure import graph_errors, tower_inputs
from .towers import IMMICH_TOWERS, TOWERS

# CPUs round differently: errors may be a tenth and 2e-6 above the recorded ones
RELATIVE, ABSOLUTE = 0.1, 2e-6


def verify_export(
    directory: str | os.PathLike,
    source: str | os.PathLike | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Measure the error of every graph in an exported folder against its model, and report each file.

    Args:
        directory: A folder that `export_clip` wrote.
        source: The folder or Hub id of the model (default: the source in the manifest).
        report: Called with a sentence for each file.

    Returns:
        True if sizes and, up to rounding, errors of all files are those in parity.json.

    Raises:
        ValueError: The folder has no readable manifest or parity.json, or a graph cannot be opened.
        OSError: The model cannot be found.

    Example:
        >>> verify_export("clip-rn50-onnx", "clip-rn50")
    """
    folder, manifest = Path(directory), read_manifest(directory)
    recorded = _recorded(folder / "parity.json")
    model, processor = load_source(source or manifest.source)
    inputs = tower_inputs(model, processor)
    towers = IMMICH_TOWERS if manifest.target == "immich" else TOWERS
    equal = True
    for name, row in recorded.items():
        file, tower = folder / name, towers[row["part"]](model)
        if not file.is_file():
            found = "is missing"
        elif file_bytes(file) != row["bytes"]:
            found = f"has {file_bytes(file):,} bytes, recorded are {row['bytes']:,}"
        else:
            session = OPEN[manifest.runtime](file, "cpu")
            measured = graph_errors(session, tower, {key: inputs[key] for key in tower.inputs})
            found = _difference(measured, row)
        equal &= not found
        report(f"{name}: {found or 'equal to what parity.json recorded'}")
    return equal


def _recorded(file: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: export the model again") from error


def _difference(measured: dict[str, float], row: dict[str, Any]) -> str:
    """Describe the first error that is larger than recorded; empty if none is."""
    for name in ("relative_error_max", "relative_error_mean"):
        if measured[name] > row[name] * (1 + RELATIVE) + ABSOLUTE:
            return f"{name} is {measured[name]:.2e}, recorded is {row[name]:.2e}"
    return ""


__all__ = ["verify_export"]
