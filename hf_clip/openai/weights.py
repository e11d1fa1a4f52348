"""Recognize OpenAI's weights in another file than the published one, by a digest of their values."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from .key_mapping import BOOKKEEPING

RECORDED_WEIGHTS = Path(__file__).parent / "weights.json"
"""The digests of the nine, by name; `python -m conversion record-digests` writes them."""


def values_digest(state_dict: dict[str, Tensor]) -> str:
    """Return the SHA-256 of all values under the original's keys, as float32: dtypes and counters do not count."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        if key not in BOOKKEEPING and not key.endswith(".num_batches_tracked"):
            tensor = state_dict[key].to(torch.float32).contiguous()
            digest.update(f"{key} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).numpy())
    return digest.hexdigest()


def recorded_digests() -> dict[str, str]:
    """Read the digests that are recorded, by name."""
    return json.loads(RECORDED_WEIGHTS.read_text(encoding="utf-8"))


__all__ = ["RECORDED_WEIGHTS", "recorded_digests", "values_digest"]
