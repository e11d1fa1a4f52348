"""Serve a CLIP on Hugging Face Inference Endpoints, which call `EndpointHandler(folder)(request)`.

An image with labels gives scores: {"inputs": IMAGE, "parameters": {"candidate_labels": ["a cat", "a dog"]}}.
An image or texts give embeddings: {"inputs": {"image": IMAGE}} or {"inputs": {"text": "a cat"}}; a list gives several.
IMAGE is base64, bytes or a PIL image.
"""

import base64
import io
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

TASK = "zero-shot-image-classification"
# bounds of one request, those of the app: what is larger is refused before work begins
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES, MAX_PIXELS, MAX_SCANS = 20_000_000, 40_000_000, 200
MAX_LABELS, MAX_ITEMS, MAX_CHARACTERS = 1000, 256, 100_000
START_OF_SCAN = b"\xff\xda"


class EndpointHandler:
    """Answer requests with the model in a folder; a bad request raises ValueError with one sentence."""

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
        if parameters:
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
        _check_count("candidate_labels", candidate_labels, MAX_LABELS)
        if unknown := options.keys() - {"hypothesis_template"}:
            raise ValueError(f'"parameters" has {sorted(unknown)}: send candidate_labels and hypothesis_template alone')
        template = options.get("hypothesis_template")
        # a format such as {:>900000000} would fill the memory
        if template is not None and not (isinstance(template, str) and _is_template(template)):
            raise ValueError('"hypothesis_template" must be a text with {} where the label goes, and no other braces')
        return self.classify(read_image(given["image"]), candidate_labels=candidate_labels, **options)

    @torch.no_grad()
    def _embed(self, kind: str, values: list[Any]) -> list[list[float]]:
        if kind == "text" and not _texts(values):
            raise ValueError('"text" must be a text, or a list of one or more')
        if not values:
            raise ValueError('"image" is an empty list: send one or more images')
        _check_count(kind, values, MAX_ITEMS)
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
        if len(value) > MAX_BYTES:
            raise RefusedImageError(
                f"the image has {len(value):,} bytes, at most {MAX_BYTES:,} are read: make it smaller"
            )
        image = Image.open(io.BytesIO(value), formats=FORMATS)
        check_cost(image, value)
        image.load()
    except RefusedImageError:
        raise
    except Exception as error:  # plugins of Pillow raise arbitrary exceptions for damaged files
        raise ValueError("the image cannot be read: send a PNG or JPEG file in base64") from error
    return image


class RefusedImageError(ValueError):
    """Raised for an image that is readable, and too large to decode."""


def check_cost(image: Image.Image, content: bytes) -> None:
    """Raise RefusedImageError for too many pixels, or a JPEG of so many scans that it decodes for minutes."""
    if image.width * image.height > MAX_PIXELS:
        raise RefusedImageError(
            f"the image has {image.width * image.height:,} pixels, at most {MAX_PIXELS:,} are read: make it smaller"
        )
    # compressed data of a JPEG escapes 0xff, so these bytes are a marker wherever they stand
    has_scans = image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"
    if has_scans and content.count(START_OF_SCAN) > MAX_SCANS:
        raise RefusedImageError(f"the JPEG has over {MAX_SCANS} scans: save it again")


def _is_template(text: str) -> bool:
    return "{}" in text and not set(text.replace("{}", "")) & {"{", "}"}


def _check_count(name: str, values: list[Any], most: int) -> None:
    """Raise ValueError for too many values, or texts that are too long in all."""
    if len(values) > most:
        raise ValueError(f'"{name}" has {len(values):,} items, at most {most:,} are read: send fewer')
    length = sum(len(value) for value in values if isinstance(value, str) and name != "image")
    if length > MAX_CHARACTERS:
        raise ValueError(f'"{name}" has {length:,} characters, at most {MAX_CHARACTERS:,} are read: send fewer')


def _texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)
