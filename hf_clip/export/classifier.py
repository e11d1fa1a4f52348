"""Export of a saved classifier: one more small graph, from the embeddings of an exported vision tower to scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..exported.sessions import OPEN
from ..model.modeling_hf_clip_base import normalize as unit_length
from ..zero_shot.head import ClassifierHead
from .towers import write_onnx

CLASSIFIER, CLASSIFIER_SETTINGS = "classifier.onnx", "classifier.json"
COMPARED_EMBEDDINGS = 64


class ClassifierScores(nn.Module):
    """The head of a classifier with its calibration: embeddings of any length to probabilities."""

    inputs, outputs = {"image_embeds": {0: "batch"}}, ["scores"]

    def __init__(self, head: ClassifierHead, logit_scale: torch.Tensor):
        super().__init__()
        self.head = head
        self.register_buffer("logit_scale", logit_scale.detach().clone())

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        return self.head.scores(self.head.evidence(self, unit_length(image_embeds)))


def write_classifier(head: ClassifierHead, logit_scale: torch.Tensor, directory: Path, opset: int) -> dict[str, Any]:
    """Write classifier.onnx and classifier.json, the names and least scores of its columns, and measure the graph.

    Returns:
        The largest absolute error of a probability, on random embeddings and on the head's own.
    """
    scores = ClassifierScores(head.to("cpu"), logit_scale.cpu()).eval()
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(COMPARED_EMBEDDINGS, head.class_embeds.shape[1], generator=generator)
    # class embeddings of a cache whose pictures have all the weight are zero
    embeds = torch.cat([embeds, (head.class_embeds if head.keys is None else head.keys).cpu()])
    write_onnx(scores, {"image_embeds": embeds}, directory / CLASSIFIER, opset)
    settings = {"columns": head.columns, "mode": head.mode, "least_scores": head.least_scores().tolist()}
    if head.exif is not None:
        settings["exif"] = head.exif
    (directory / CLASSIFIER_SETTINGS).write_text(
        json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    with torch.no_grad():
        expected = scores(embeds).numpy()
    found = OPEN["onnx"](directory / CLASSIFIER, "cpu")({"image_embeds": embeds.numpy()})
    return {"columns": len(head.columns), "absolute_error_max": float(np.abs(found - expected).max())}


__all__ = ["CLASSIFIER", "write_classifier"]
