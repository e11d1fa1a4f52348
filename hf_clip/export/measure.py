"""Compare exported graphs with the model they came from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.read import read_rows
from ..exported.model import HFCLIPExportedModel
from ..exported.sessions import Session
from ..parity.reference import FEATURE_IMAGES, PARITY, open_fixed_image, texts_and_ids
from ..zero_shot.classifier import ZeroShotClassifier

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
def compare(session: Session, tower: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
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


class LabeledImages:
    """Score a folder of labeled images, one subfolder for each label, with any CLIP."""

    def __init__(self, folder: Path, processor: Any):
        rows = read_rows(folder)
        if not rows.labels or any(row.label is None for row in rows):
            raise ValueError(f"{folder} has no labels: evaluation takes one folder of images for each label")
        self.labels, self.paths = rows.labels, [row.image for row in rows]
        self.truth = torch.tensor([row.label for row in rows])
        self.processor = processor

    def answers(self, model: Any) -> torch.Tensor:
        """Return the label (images,) that `model` gives the highest score."""
        return ZeroShotClassifier(model, self.processor, self.labels).logits(self.paths).argmax(1)

    def accuracy(self, answers: torch.Tensor) -> float:
        return float((answers == self.truth).float().mean())


def evaluate(
    directory: Path,
    precisions: Sequence[str],
    model: nn.Module,
    images: LabeledImages,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return and report top-1 agreement with `model` and accuracy of each precision of an exported folder."""
    reference = images.answers(model)
    rows: dict[str, Any] = {"images": len(images.paths), "accuracy": images.accuracy(reference)}
    for precision in precisions:
        answers = images.answers(HFCLIPExportedModel(directory, precision))
        agreement = float((answers == reference).float().mean())
        rows[precision] = {
            "accuracy": images.accuracy(answers),
            "agreement": agreement,
            "good": agreement >= MIN_AGREEMENT,
        }
        report(
            f"{precision}: accuracy {rows[precision]['accuracy']:.1%} beside the model's {rows['accuracy']:.1%}, "
            f"agrees on {agreement:.1%}: {'good' if rows[precision]['good'] else 'do not use it'}"
        )
    return rows


__all__ = ["MIN_AGREEMENT", "NOT_EVALUATED", "LabeledImages", "compare", "evaluate", "tower_inputs"]
