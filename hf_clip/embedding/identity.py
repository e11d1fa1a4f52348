"""Identify a model by the embedding it gives to one fixed text or image."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..openai.published import CHECKPOINTS

if TYPE_CHECKING:  # who only compares fingerprints need not wait for the model's classes
    from .features import Array, Model

PROBE = "a photograph of seven small boats in the harbour, seen from the old lighthouse"
# largest distance between two probes (of length 1) of one model: by rounding, or from one precision to another
SAME_PRECISION, OTHER_PRECISION = 1e-3, 5e-2


class OtherModelError(ValueError):
    """Raised where class embeddings come from another model than the one they should serve."""


def name_of(model: "Model") -> str:
    """Return the folder or Hub id that `model` came from, else its class name."""
    return model.config.name_or_path or type(model).__name__


def precision_of(model: "Model") -> str:
    """Return the dtype that `model` computes in, for an exported one that of its files, such as torch.int8."""
    exported = {"fp32": "torch.float32", "fp16": "torch.float16", "q8": "torch.int8"}
    return exported.get(getattr(model, "precision", ""), str(model.dtype))


def text_probe(model: "Model", processor: Any) -> "Array":
    """Embed the fixed text, as (1, projection_dim) float32 of length 1."""
    from .texts import embed_texts

    return embed_texts(model, processor, [PROBE])


def image_probe(model: "Model", processor: Any) -> "Array":
    """Embed the fixed image, as (projection_dim,) float32 of length 1."""
    from .images import embed_images

    ramp = np.add.outer(np.arange(200), np.arange(300) * 2)  # (H, W)
    image = Image.fromarray(np.stack([ramp, ramp * 3, ramp * 7], -1).astype(np.uint8))
    return embed_images(model, processor, image)[0]


def store_settings(model: "Model", processor: Any, dtype: str, normalize: bool) -> dict[str, Any]:
    """Return the settings that all embeddings in one FeatureStore have in common."""
    probe = image_probe(model, processor).tolist()
    return {"model": name_of(model), "dtype": dtype, "normalize": normalize, "dim": len(probe), "probe": probe}


def fingerprint(model_id: str) -> str | None:
    """Return a digest that changes when a model's files do, or None where they are not on this machine.

    One of OpenAI's nine names stands for the SHA-256 of its file. Otherwise names, sizes and times are read of a
    checkpoint file, of the files of a folder, or of the cached copy of a Hub repository.
    """
    folder = Path(model_id)
    if folder.is_file():
        folder, paths = folder.parent, [folder]
    elif folder.is_dir():
        paths = sorted(folder.rglob("*"))
    elif model_id in CHECKPOINTS:
        return CHECKPOINTS[model_id].sha256
    else:
        from huggingface_hub import try_to_load_from_cache

        repository, _, revision = model_id.partition("@")
        config = try_to_load_from_cache(repository, "config.json", revision=revision or None)
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
        paths = sorted(folder.rglob("*"))
    stats = {str(path.relative_to(folder)): path.stat() for path in paths if path.is_file()}
    listed = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats.items()]
    return hashlib.blake2b(os.fsencode("\n".join(listed)), digest_size=16).hexdigest()


def same_model(probe: "Array", known: "Array", same_precision: bool) -> bool:
    """Return True if two probes come from one model, up to rounding."""
    tolerance = SAME_PRECISION if same_precision else OTHER_PRECISION
    probe, known = np.asarray(probe), np.asarray(known)
    return probe.shape == known.shape and bool(np.linalg.norm(probe - known) <= tolerance)


__all__ = [
    "OTHER_PRECISION",
    "SAME_PRECISION",
    "OtherModelError",
    "fingerprint",
    "image_probe",
    "name_of",
    "precision_of",
    "same_model",
    "store_settings",
    "text_probe",
]
