"""An exported CLIP on NumPy arrays: ONNX Runtime or OpenVINO computes, and no torch is needed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np

from .manifest import Manifest, read_manifest
from .processor import ExportedProcessor
from .sessions import CHECK_DEVICE, OPEN, Session, runtime_device

PRECISIONS = ("fp32", "fp16", "q8")
DTYPE_NAMES = {"fp32": "float32", "fp16": "float16", "q8": "int8"}
FEATURE_METHODS = {"vision": "get_image_features", "text": "get_text_features"}


@dataclass(frozen=True)
class ExportedConfig:
    """Sizes of an exported CLIP.

    Args:
        name_or_path: The folder.
        image_size: The side of `pixel_values`.
        projection_dim: The size of embeddings.
        max_position_embeddings: The most tokens that a text may have.
    """

    name_or_path: str
    image_size: int
    projection_dim: int
    max_position_embeddings: int

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any]) -> "ExportedConfig":
        """Read the sizes from a configuration of HFCLIPModel."""
        vision, text = config["vision_config"], config["text_config"]
        return cls(name, vision["image_size"], config["projection_dim"], text["max_position_embeddings"])


class ExportedCLIP:
    """Run an exported CLIP on NumPy arrays, without torch and transformers.

    `embed_images`, `embed_texts`, `ZeroShotClassifier` and `ImageIndex` take it with its processor, and return arrays.
    Threads may share it.

    Args:
        directory: A folder that `export_clip` wrote, with the parts vision and text.
        precision: "fp32", "fp16" or "q8" (default: the first of these in the folder).
        device: "cpu" or a device of the installed runtime (default: "cuda" if the runtime has it, else "cpu").

    Raises:
        ValueError: The folder lacks the precision or a file, or the runtime cannot use the device.
        MissingPackageError: The runtime is not installed.

    Example:
        >>> model, processor = load_exported("clip-rn50-onnx")
        >>> embeds = model.encode_text(processor(text="a cat")["input_ids"])  # (1, projection_dim)
    """

    training = False
    dtype = "torch.float32"  # as PyTorch writes it, in files that both read

    def __init__(self, directory: str | os.PathLike, precision: str | None = None, device: str | None = None):
        name, manifest = os.fspath(directory), read_manifest(directory)
        self.config = ExportedConfig.of(name, manifest.config)
        self.logit_scale = np.float32(manifest.logit_scale)
        self.precision = _choose(manifest, precision, name)
        self._files = {
            part: _graph_file(Path(directory), manifest, part, self.precision)
            for part in FEATURE_METHODS
            if self.precision in manifest.graphs.get(part, {})
        }
        self.device = device or runtime_device(manifest.runtime)
        kind = self.device.partition(":")[0]
        CHECK_DEVICE[manifest.runtime](name, kind)
        # opened at first use: a search by text needs no image tower
        self._open = partial(OPEN[manifest.runtime], device=kind)
        self._sessions: dict[str, Session] = {}
        self._lock = Lock()

    def encode_image(self, pixel_values: np.ndarray) -> np.ndarray:
        """Compute image embeddings (B, projection_dim) of `pixel_values` (B, 3, H, W), float32, not normalized."""
        return self._run("vision", pixel_values=np.ascontiguousarray(pixel_values, np.float32))

    def encode_text(self, input_ids: np.ndarray) -> np.ndarray:
        """Compute text embeddings (B, projection_dim), float32, not normalized, of `input_ids` (B, L)."""
        return self._run("text", input_ids=np.ascontiguousarray(input_ids, np.int64))

    def release(self, part: Literal["vision", "text"]) -> None:
        """Free the memory of a tower that may not be needed again; its next use opens it anew."""
        with self._lock:
            self._sessions.pop(part, None)

    def _run(self, part: str, **inputs: np.ndarray) -> np.ndarray:
        if part not in self._files:
            raise ValueError(
                f"{self.config.name_or_path} has no {part} graph in {self.precision}: export it again with --parts "
                "vision,text"
            )
        return self._session(part)(inputs)

    def _session(self, part: str) -> Session:
        with self._lock:
            if part not in self._sessions:
                self._sessions[part] = self._open(self._files[part])
            return self._sessions[part]


def load_exported(
    directory: str | os.PathLike, *, precision: str | None = None, device: str | None = None
) -> tuple[ExportedCLIP, ExportedProcessor]:
    """Load an exported CLIP and its processor, which compute on NumPy arrays and need no torch.

    Args:
        directory: A folder that `export_clip` or `hf-clip export` wrote.
        precision: "fp32", "fp16" or "q8" (default: the first of these in the folder).
        device: "cpu" or a device of the installed runtime (default: "cuda" if the runtime has it, else "cpu").

    Returns:
        The model and the processor; its pixels and token ids equal the original's.

    Raises:
        ValueError: The folder lacks the precision or a file, or the runtime cannot use the device.
        MissingPackageError: The runtime is not installed.

    Example:
        >>> model, processor = load_exported("clip-rn50-onnx")
        >>> ZeroShotClassifier(model, processor, ["a cat", "a dog"])("photo.jpg")
    """
    return ExportedCLIP(directory, precision, device), ExportedProcessor(directory)


def precision_for(directory: str | os.PathLike, dtype: str | None, optimize: bool = False) -> str | None:
    """Return the precision that a dtype stands for; raise ValueError if no exported folder has it."""
    if optimize:
        raise ValueError(f"{directory} is exported, its runtime has optimized the graph: leave optimize off")
    precisions = {name: precision for precision, name in DTYPE_NAMES.items()}
    if dtype is not None and dtype.removeprefix("torch.") not in precisions:
        raise ValueError(f"{directory} is exported and cannot compute in {dtype}: choose float16, int8, or none")
    return None if dtype is None else precisions[dtype.removeprefix("torch.")]


def _choose(manifest: Manifest, precision: str | None, name: str) -> str:
    held = [known for known in PRECISIONS if any(known in manifest.graphs.get(part, {}) for part in FEATURE_METHODS)]
    if manifest.target == "immich":
        raise ValueError(f"{name} has the graphs of Immich, which take one row: export again without --target immich")
    if not held:
        raise ValueError(f"{name} has neither a vision nor a text graph: export again with --parts vision,text")
    if precision is not None and precision not in held:
        raise ValueError(
            f"{name} has no {precision}, only {', '.join(held)}: pass dtype {DTYPE_NAMES[held[0]]}, or export it again"
        )
    return precision or held[0]


def _graph_file(directory: Path, manifest: Manifest, part: str, precision: str) -> Path:
    file = directory / manifest.graphs[part][precision]
    if not file.is_file():
        raise ValueError(f"{file} is missing, the manifest of {directory} names it: copy the whole folder")
    return file


__all__ = ["FEATURE_METHODS", "PRECISIONS", "ExportedCLIP", "ExportedConfig", "load_exported", "precision_for"]
