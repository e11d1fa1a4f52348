"""Serve a CLIP on Hugging Face Inference Endpoints, which call `EndpointHandler(folder)(request)`.

An image with labels gives scores: {"inputs": IMAGE, "parameters": {"candidate_labels": ["a cat", "a dog"]}}.
An image or texts give embeddings: {"inputs": {"image": IMAGE}} or {"inputs": {"text": "a cat"}}; a list gives several.
IMAGE is base64, bytes or a PIL image.
"""

import base64
import binascii
import io
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

TASK = "zero-shot-image-classification"


class EndpointHandler:
    """Answer requests with the model in a folder; what is wrong with a request is a ValueError of one sentence."""

    def __init__(self, path: str = "") -> None:
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        parts = {"tokenizer": self.processor.tokenizer, "image_processor": self.processor.image_processor}
        self.classify = pipeline(TASK, model=self.model, device=self.model.device, **parts)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]] | dict[str, Any]:
        """Return scores, best first, or {"embedding": numbers}, or {"embeddings": rows} for a list."""
        if not isinstance(data, dict) or data.get("inputs") is None:
            raise ValueError('the request has no "inputs": send an image or {"text": ...}')
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        given = inputs if isinstance(inputs, dict) else {"image": inputs}
        if len(given) != 1 or not given.keys() <= {"image", "text"}:
            raise ValueError(f'"inputs" has {sorted(given)}: send {{"image": ...}} or {{"text": ...}}')
        if not isinstance(parameters, dict):
            raise ValueError('"parameters" is no object: send {"candidate_labels": [...]}')
        if "candidate_labels" in parameters:
            return self._scores(given, **parameters)
        (kind, value), *_ = given.items()
        several = isinstance(value, list)
        embeddings = self._embed(kind, value if several else [value])
        return {"embeddings": embeddings} if several else {"embedding": embeddings[0]}

    def _scores(self, given: dict[str, Any], candidate_labels: Any = None, **options: Any) -> list[dict[str, Any]]:
        if "image" not in given or isinstance(given["image"], list):
            raise ValueError('labels need one image: send {"inputs": IMAGE}')
        if not _texts(candidate_labels):
            raise ValueError('"candidate_labels" must be a list of one or more texts')
        if unknown := options.keys() - {"hypothesis_template"}:
            raise ValueError(f'"parameters" has {sorted(unknown)}: send candidate_labels and hypothesis_template alone')
        template = options.get("hypothesis_template")
        if template is not None and (not isinstance(template, str) or "{}" not in template):
            raise ValueError('"hypothesis_template" must be a text with {} where the label goes')
        return self.classify(read_image(given["image"]), candidate_labels=candidate_labels, **options)

    @torch.no_grad()
    def _embed(self, kind: str, values: list[Any]) -> list[list[float]]:
        if kind == "text" and not _texts(values):
            raise ValueError('"text" must be a text, or a list of one or more')
        if not values:
            raise ValueError('"image" is an empty list: send one or more images')
        if kind == "text":
            ids = self.processor(text=values, padding=True, truncation=True, return_tensors="pt")
            output = self.model.get_text_features(input_ids=ids["input_ids"].to(self.model.device))
        else:
            pixels = self.processor(images=[read_image(value) for value in values], return_tensors="pt")
            output = self.model.get_image_features(pixel_values=pixels["pixel_values"].to(self.model.device))
        return output.pooler_output.float().tolist()


def read_image(value: Any) -> Image.Image:
    """Return the image that was sent: a PIL image, bytes, or base64 with or without a data URL ahead."""
    if isinstance(value, Image.Image):
        return value
    try:
        if isinstance(value, str):
            value = base64.b64decode(value.rpartition("base64,")[2], validate=True)
        image = Image.open(io.BytesIO(value))
        image.load()
    except (binascii.Error, OSError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("the image cannot be read: send a PNG or JPEG file in base64") from error
    return image


def _texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)
