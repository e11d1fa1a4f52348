"""Answers of the app without the page: an upload and lines of text in, results of the library out.

Requests come from anyone who reaches the page, so every input has a bound that is checked before work begins.
"""

import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import PreTrainedModel

from ..localization.maps import where
from ..plots.sheet import SIDE, thumbnail_of
from ..search.index import ImageIndex
from ..zero_shot.classifier import ZeroShotClassifier
from ..zero_shot.head import NONE_LABEL, Mode
from ..zero_shot.prompts import TEMPLATE

UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_UPLOAD_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
MAX_SCANS = 200  # of a progressive JPEG; cameras and programs write about 10
MAX_MAP_SIDE = 1024
MAX_LABELS, MAX_TEMPLATES, MAX_PROMPTS = 1000, 100, 4000
MAX_TEXTS = 8
MAX_CHARACTERS = 100_000
START_OF_SCAN = b"\xff\xda"


class AppError(ValueError):
    """Raised for a request that its sender can put right."""


def check_upload(path: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Return the path of an upload.

    A request can name any path of this machine in place of its upload, so only regular files below the folder of
    uploads pass. Links are resolved first, and a FIFO, which would block whoever opens it, is refused.

    Args:
        path: The path in the request.
        folder: The folder into which Gradio writes uploads.

    Raises:
        AppError: The path is not that of an upload.
    """
    try:
        resolved = Path(path).resolve(strict=True)
        is_upload = resolved.is_relative_to(Path(folder).resolve()) and stat.S_ISREG(resolved.stat().st_mode)
    except (OSError, ValueError, RuntimeError):  # no such file, a null byte, a circle of links
        is_upload = False
    if not is_upload:
        raise AppError("the image is not an upload: upload it again")
    return str(resolved)


def read_upload(path: str | os.PathLike | None) -> Image.Image:
    """Decode an uploaded file, turned as its EXIF orientation says.

    Raises:
        AppError: There is no file, it is not an image in UPLOAD_FORMATS, or it exceeds a bound.
    """
    if path is None:
        raise AppError("there is no image: upload one")
    try:
        content = _read_bytes(path)
        with Image.open(io.BytesIO(content), formats=UPLOAD_FORMATS) as image:
            check_pixels(image.width * image.height)
            _check_scans(image, content)
            return ImageOps.exif_transpose(image)
    except AppError:
        raise
    except Image.DecompressionBombError:
        raise AppError(f"the image has over {MAX_PIXELS:,} pixels: make it smaller") from None
    except Exception:  # plugins of Pillow raise arbitrary exceptions, with paths of the server in their messages
        raise AppError(f"the file cannot be read as an image: upload one of {', '.join(UPLOAD_FORMATS)}") from None


def _read_bytes(path: str | os.PathLike) -> bytes:
    # not blocking, for a FIFO that took the place of the file after it was checked
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise AppError("the image is not an upload: upload it again")
        content = file.read(MAX_UPLOAD_BYTES + 1)
    if len(content) > MAX_UPLOAD_BYTES:
        raise AppError(f"the file has over {MAX_UPLOAD_BYTES:,} bytes: make it smaller")
    return content


def check_pixels(count: int) -> None:
    """Raise AppError for an image of more than MAX_PIXELS pixels."""
    if count > MAX_PIXELS:
        raise AppError(f"the image has {count:,} pixels, at most {MAX_PIXELS:,} are read: make it smaller")


def _check_scans(image: Image.Image, content: bytes) -> None:
    """Raise AppError for a JPEG of so many scans, each of which passes over all pixels, that it decodes for minutes."""
    # compressed data of a JPEG escapes 0xff, so these bytes are a marker wherever they stand
    has_scans = image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"
    if has_scans and content.count(START_OF_SCAN) > MAX_SCANS:
        raise AppError(
            f"the JPEG has {content.count(START_OF_SCAN):,} scans, at most {MAX_SCANS} are read: save it again"
        )


def split_lines(text: str | None, name: str, most: int, least: int = 1) -> list[str]:
    """Split `text` into its different lines, without blank ones.

    Raises:
        AppError: There are fewer lines than `least`, more than `most`, or over MAX_CHARACTERS characters.
    """
    text = text or ""
    if len(text) > MAX_CHARACTERS:
        raise AppError(f"the {name} have {len(text):,} characters, at most {MAX_CHARACTERS:,} are read: shorten them")
    lines = list(dict.fromkeys(line for line in map(str.strip, text.splitlines()) if line))
    if len(lines) < least:
        raise AppError(f"there are no {name}: write one per line")
    if len(lines) > most:
        raise AppError(f"there are {len(lines):,} {name}, at most {most:,} are read: leave some out")
    return lines


def split_templates(text: str | None) -> list[str]:
    """Split templates; TEMPLATE if there is none.

    Raises:
        AppError: A template has no {}, or other braces: a format such as {:>900000000} would fill the memory.
    """
    templates = split_lines(text, "templates", MAX_TEMPLATES, least=0) or [TEMPLATE]
    for template in templates:
        if "{}" not in template or set(template.replace("{}", "")) & {"{", "}"}:
            raise AppError(f"the template {template[:80]!r} needs {{}} for the label, and no other braces: change it")
    return templates


def label_scores(
    model: PreTrainedModel,
    processor: Any,
    upload: str | None,
    labels: str,
    templates: str,
    top_k: float,
    mode: Mode = "one",
) -> dict[str, float]:
    """Score the upload against labels, averaged over templates, one of either per line; return the `top_k` best."""
    image = read_upload(upload)
    chosen, around = split_lines(labels, "labels", MAX_LABELS), split_templates(templates)
    if len(chosen) * len(around) > MAX_PROMPTS:
        raise AppError(
            f"{len(chosen):,} labels in {len(around):,} templates are {len(chosen) * len(around):,} prompts, at most "
            f"{MAX_PROMPTS:,} are computed: leave some out"
        )
    [answers] = ZeroShotClassifier(model, processor, chosen, around, mode=mode)(image, int(top_k))
    return {answer["label"]: answer["score"] for answer in answers}


def decide_upload(classifier: ZeroShotClassifier, upload: str | None, top_k: float) -> tuple[dict[str, float], str]:
    """Return the `top_k` best scores of a saved classifier, and its decision with the reason."""
    [(_, decision)] = classifier.decisions(read_upload(upload), int(top_k))
    taken = ", ".join(map(str, decision.labels)) or NONE_LABEL
    return {str(answer["label"]): answer["score"] for answer in decision.scores}, f"{taken}: {decision.reason}"


def locate(
    model: PreTrainedModel, processor: Any, upload: str | None, texts: str, method: str, whole: bool
) -> tuple[Image.Image, Sequence[str], torch.Tensor]:
    """Map where in the upload each text is; return the image, at most MAX_MAP_SIDE pixels long, texts and maps."""
    image = read_upload(upload)
    image.thumbnail((MAX_MAP_SIDE, MAX_MAP_SIDE))
    chosen = split_lines(texts, "texts", MAX_TEXTS)
    return image, chosen, where(model, processor, image, chosen, method, whole=whole)


def find(
    index: ImageIndex, upload: str | None, texts: str, count: float, with_image: bool = False
) -> list[tuple[Image.Image, str]]:
    """Find the images most similar to the texts and, with `with_image`, the upload; return thumbnails and captions.

    The thumbnail of an image that cannot be opened is gray. A caption has the name of the file, not its folder.
    """
    lines = split_lines(texts, "texts", MAX_TEXTS, least=0)
    images = [read_upload(upload)] if with_image else []
    if not lines and not images:
        raise AppError("the query is empty: write a text, or search with the image")
    hits = index.search(lines, image=images, k=int(count))
    return [
        (
            thumbnail_of(index.source_of(hit["path"])) or Image.new("RGB", (SIDE, SIDE), "gray"),
            f"{hit['score']:.3f} {os.path.basename(hit['path'])}",
        )
        for hit in hits
    ]


__all__ = ["AppError", "check_upload", "decide_upload", "find", "label_scores", "locate", "read_upload"]
