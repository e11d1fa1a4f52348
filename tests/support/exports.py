"""An exported folder without a runtime: its settings are an export's, its graphs are whatever a test runs."""

from pathlib import Path
from typing import Any

from hf_clip.export.targets import TARGETS, write_settings
from hf_clip.exported.manifest import Manifest

GRAPHS = {"vision": {"fp32": "vision.onnx", "q8": "v.onnx"}, "text": {"fp32": "text.onnx", "q8": "t.onnx"}}


def write_export(folder: Path, model: Any, processor: Any = None) -> Path:
    """Write an exported folder with empty graphs; with the settings of `processor`, if there is one."""
    scale, config = model.logit_scale.item(), model.config.to_dict()
    folder.mkdir(exist_ok=True)
    Manifest("onnx", "transformers.js", GRAPHS, ".", ".", scale, "x", config).write(folder)
    for files in GRAPHS.values():
        for file in files.values():
            (folder / file).touch()
    if processor is not None:
        write_settings(folder, TARGETS["transformers.js"], model.config, processor)
    return folder
