"""Answers of the app without the page: an upload and lines of text in, results of the library out.

Requests come from anyone who reaches the page, so every input has a bound that is checked before work begins.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from ..data.images import Exif, ImageTally, surprises
from ..data.requests import (
    MAX_LABELS,
    MAX_MAP_SIDE,
    MAX_MAPPED_TEXTS,
    MAX_TEMPLATES,
    MAX_UPLOAD_BYTES,
    RequestError,
    check_characters,
    check_prompts,
    decode_upload,
    open_upload,
)
from ..localization.maps import where
from ..plots.sheet import SIDE, thumbnail_of
from ..search.index import ImageIndex
from ..zero_shot.classifier import ZeroShotClassifier
from ..zero_shot.head import NONE_LABEL, Mode
from ..zero_shot.prompts import TEMPLATE


def check_upload(path: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Return the path of an upload.

    A request can name any path of this machine in place of its upload, so only regular files below the folder of
    uploads pass. Links are resolved first, and a FIFO, which would block whoever opens it, is refused.

    Args:
        path: The path in the request.
        folder: The folder into which Gradio writes uploads.

    Raises:
        RequestError: The path is not that of an upload.
    """
    try:
        resolved = Path(path).resolve(strict=True)
        is_upload = resolved.is_relative_to(Path(folder).resolve()) and stat.S_ISREG(resolved.stat().st_mode)
    except (OSError, ValueError, RuntimeError):  # no such file, a null byte, a circle of links
        is_upload = False
    if not is_upload:
        raise RequestError("the image is not an upload: upload it again")
    return str(resolved)


def read_upload(path: str | os.PathLike | None, exif: Exif = "apply") -> Image.Image:
    """Decode an uploaded file, turned as its EXIF orientation says unless `exif` is "ignore".

    Raises:
        RequestError: There is no file, it is not an image in UPLOAD_FORMATS, or it exceeds a bound.
    """
    if path is None:
        raise RequestError("there is no image: upload one")
    try:
        content = _read_bytes(path)
    except OSError:  # its message has the path of the server
        content = b""
    return decode_upload(open_upload(content), exif)


def _read_bytes(path: str | os.PathLike) -> bytes:
    # not blocking, for a FIFO that took the place of the file after it was checked
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RequestError("the image is not an upload: upload it again")
        content = file.read(MAX_UPLOAD_BYTES + 1)
    return content


def split_lines(text: str | None, name: str, most: int, least: int = 1) -> list[str]:
    """Split `text` into its different lines, without blank ones.

    Raises:
        RequestError: There are fewer lines than `least`, more than `most`, or over MAX_CHARACTERS characters.
    """
    text = text or ""
    check_characters(name, len(text))
    lines = list(dict.fromkeys(line for line in map(str.strip, text.splitlines()) if line))
    if len(lines) < least:
        raise RequestError(f"there are no {name}: write one per line")
    if len(lines) > most:
        raise RequestError(f"there are {len(lines):,} {name}, at most {most:,} are read: leave some out")
    return lines


def label_scores(
    model: PreTrainedModel,
    processor: Any,
    upload: str | None,
    labels: str,
    templates: str,
    top_k: float,
    mode: Mode = "one",
    *,
    exif: Exif = "apply",
) -> dict[str, float]:
    """Score the upload against labels, averaged over templates, one of either per line; return the `top_k` best."""
    image = read_upload(upload, exif)
    chosen = split_lines(labels, "labels", MAX_LABELS)
    around = split_lines(templates, "templates", MAX_TEMPLATES, least=0) or [TEMPLATE]
    check_prompts(chosen, around)
    [answers] = ZeroShotClassifier(model, processor, chosen, around, mode=mode)(image, int(top_k))
    return {answer["label"]: answer["score"] for answer in answers}


def decide_upload(
    classifier: ZeroShotClassifier, upload: str | None, top_k: float, *, exif: Exif = "apply"
) -> tuple[dict[str, float], str]:
    """Return the `top_k` best scores of a saved classifier, and its decision with the reason.

    The upload is read as the images were that the classifier learned from, if it did.
    """
    image, tally, exif = read_upload(upload, "ignore"), ImageTally(), classifier.head.exif or exif
    [(_, decision)] = classifier.decisions(image, int(top_k), exif=exif, tally=tally)
    taken = ", ".join(map(str, decision.labels)) or NONE_LABEL
    told = surprises(tally.images, tally.rotated, 0, exif, "make the classifier again with --exif apply")
    scores = {str(answer["label"]): answer["score"] for answer in decision.scores}
    return scores, "\n".join([f"{taken}: {decision.reason}", *told])


def locate(
    model: PreTrainedModel,
    processor: Any,
    upload: str | None,
    texts: str,
    method: str,
    whole: bool,
    *,
    exif: Exif = "apply",
) -> tuple[Image.Image, Sequence[str], torch.Tensor]:
    """Map where in the upload each text is; return the image, at most MAX_MAP_SIDE pixels long, texts and maps."""
    image = read_upload(upload, exif)
    image.thumbnail((MAX_MAP_SIDE, MAX_MAP_SIDE))
    chosen = split_lines(texts, "texts", MAX_MAPPED_TEXTS)
    return image, chosen, where(model, processor, image, chosen, method, whole=whole)


def find(
    index: ImageIndex, upload: str | None, texts: str, count: float, with_image: bool = False
) -> list[tuple[Image.Image, str]]:
    """Find the images most similar to the texts and, with `with_image`, the upload; return thumbnails and captions.

    The upload and the thumbnails are turned if the images of the index were. The thumbnail of an image that cannot be
    opened is gray. A caption has the name of the file, not its folder.
    """
    lines = split_lines(texts, "texts", MAX_MAPPED_TEXTS, least=0)
    images = [read_upload(upload, index.exif)] if with_image else []
    if not lines and not images:
        raise RequestError("the query is empty: write a text, or search with the image")
    hits = index.search(lines, image=images, k=int(count))
    return [
        (
            thumbnail_of(index.source_of(hit["path"]), index.exif) or Image.new("RGB", (SIDE, SIDE), "gray"),
            f"{hit['score']:.3f} {os.path.basename(hit['path'])}",
        )
        for hit in hits
    ]


__all__ = ["check_upload", "decide_upload", "find", "label_scores", "locate", "read_upload"]
