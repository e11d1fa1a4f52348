"""Compare exported graphs with the model they came from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.images import Exif
from ..data.rows import Rows
from ..evaluation.tasks import classify_rows, to_rows
from ..exported.sessions import Session
from ..exported.tensors import HFCLIPExportedModel
from ..parity.reference import FEATURE_IMAGES, PARITY, open_fixed_image, texts_and_ids
from ..zero_shot.prompts import TEMPLATE

TEXTS = 12
MIN_AGREEMENT = 0.99
NOT_EVALUATED = "not evaluated"


def tower_inputs(model: nn.Module, processor: Any) -> dict[str, torch.Tensor]:
    """Prepare the parity tests' images and texts under every name that a part takes; Immich sends ids of one width."""
    images = []
    for name in FEATURE_IMAGES:
        with open_fixed_image(PARITY / "images" / name) as image:
            images.append(processor.image_processor(images=[image], return_tensors="pt").pixel_values)
    texts = [text for text, _ in texts_and_ids(77)[:TEXTS]]
    ids = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids
    missing = model.config.text_config.max_position_embeddings - ids.shape[1]
    padded = nn.functional.pad(ids, (0, missing)).int()
    pixels = torch.cat(images)
    return {"pixel_values": pixels, "input_ids": ids, "image": pixels, "text": padded}


@torch.no_grad()
def graph_errors(session: Session, tower: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return errors and the smallest cosine of a graph's first output, row by row, beside the traced `tower`'s.

    A graph that takes one row is called row by row.
    """
    if any(tower.inputs.values()):
        expected = tower(**inputs)
        actual = session({name: tensor.numpy() for name, tensor in inputs.items()})
    else:
        rows = [
            {name: tensor[i : i + 1] for name, tensor in inputs.items()}
            for i in range(len(next(iter(inputs.values()))))
        ]
        expected = torch.cat([tower(**row) for row in rows])
        actual = np.concatenate([session({name: x.numpy() for name, x in row.items()}) for row in rows])
    return errors(actual, (expected[0] if isinstance(expected, tuple) else expected).numpy())


def errors(actual: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Return relative L2 errors of rows, and the smallest cosine between rows; raise if a number is not finite."""
    if not np.isfinite(actual).all():
        raise ValueError("the exported graph gives numbers that are not finite: leave out this precision")
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(expected, axis=1)
    relative = np.linalg.norm(actual - expected, axis=1) / lengths
    cosines = (actual * expected).sum(1) / (np.linalg.norm(actual, axis=1) * lengths)
    return {
        "relative_error_max": float(relative.max()),
        "relative_error_mean": float(relative.mean()),
        "cosine_min": float(min(cosines.min(), 1.0)),
    }


def labeled_images(folder: Path) -> Rows:
    """Read a folder of labeled images, one subfolder for each label."""
    rows = to_rows(folder)
    if not rows.labels or any(row.label is None for row in rows):
        raise ValueError(f"{folder} has no labels: evaluation takes one folder of images for each label")
    return rows


def evaluate(
    directory: Path,
    precisions: Sequence[str],
    model: nn.Module,
    processor: Any,
    rows: Rows,
    report: Callable[[str], None] = lambda _: None,
    exif: Exif = "ignore",
) -> dict[str, Any]:
    """Measure how often each precision of an exported folder agrees with `model`, and its zero-shot accuracy.

    Args:
        directory: The exported folder.
        precisions: Those to measure.
        model: The model that was exported.
        processor: Its processor.
        rows: Labeled images.
        report: Called with a line on each precision.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.

    Returns:
        `images`, the model's `accuracy`, and for each precision `accuracy`, `agreement`, and whether that is `good`.
    """
    reference = classify_rows(model, processor, rows, rows.labels, [TEMPLATE], exif=exif)
    measured: dict[str, Any] = {"images": len(rows), "accuracy": reference.accuracy}
    for precision in precisions:
        exported = HFCLIPExportedModel(directory, precision)
        answers = classify_rows(exported, processor, rows, rows.labels, [TEMPLATE], exif=exif)
        agreement = float((answers.found == reference.found).float().mean())
        good = agreement >= MIN_AGREEMENT
        measured[precision] = {"accuracy": answers.accuracy, "agreement": agreement, "good": good}
        report(
            f"{precision}: accuracy {answers.accuracy:.1%} beside the model's {reference.accuracy:.1%}, "
            f"agrees on {agreement:.1%}: {'good' if good else 'do not use it'}"
        )
    return measured


__all__ = ["MIN_AGREEMENT", "NOT_EVALUATED", "evaluate", "graph_errors", "labeled_images", "tower_inputs"]
