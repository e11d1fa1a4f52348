"""Graphs of an exported folder without a runtime: any function of the inputs that tells images and texts apart."""

from collections.abc import Mapping

import numpy as np

from hf_clip.exported import model

DIM = 64


def run_graph(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return embeddings (B, DIM), float32, of `pixel_values` or `input_ids`."""
    [(name, values)] = inputs.items()
    if name == "input_ids":
        rows = [np.bincount(row[: row.argmax()] % DIM, minlength=DIM) for row in values]
        return np.array(rows, np.float32)
    return np.abs(values.reshape(len(values), -1)[:, :DIM].astype(np.float32)) + np.float32(0.1)


def use_fake_graphs() -> None:
    """Make all exported folders compute by `run_graph` in this process."""
    model.OPEN["onnx"] = lambda file, device: run_graph
    model.CHECK_DEVICE["onnx"] = lambda name, device: None
