"""What the page answers, without the page: uploads and lines of text in, results of the library out."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from ..localization.maps import where
from ..plots.sheet import SIDE, thumbnail_of
from ..search.index import ImageIndex
from ..zero_shot.classifier import ZeroShotClassifier
from ..zero_shot.prompts import TEMPLATE

MAX_PIXELS = 40_000_000
MAX_SIDE = 1024  # of the picture that maps are made for
MAX_LABELS, MAX_TEXTS = 1000, 8
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class AppError(ValueError):
    """Something that the person at the page can put right."""


def read_upload(path: str | os.PathLike | None) -> Image.Image:
    """Decode an uploaded file, which may be anything.

    Raises:
        AppError: There is no file, it is no image of UPLOAD_FORMATS, or it has over MAX_PIXELS pixels.
    """
    if path is None:
        raise AppError("there is no image: upload one")
    try:
        with Image.open(path, formats=UPLOAD_FORMATS) as image:
            check_pixels(image.width * image.height)
            image.load()
            return image
    except AppError:
        raise
    except Image.DecompressionBombError:
        raise AppError(f"the image has over {MAX_PIXELS:,} pixels: make it smaller") from None
    except Exception:  # the plugins of Pillow raise what they like, with the path on the server in it
        raise AppError(f"the file is no image that can be read: upload one of {', '.join(UPLOAD_FORMATS)}") from None


def check_pixels(count: int) -> None:
    if count > MAX_PIXELS:
        raise AppError(f"the image has {count:,} pixels, at most {MAX_PIXELS:,} are read: make it smaller")


def lines_of(text: str, name: str, most: int) -> list[str]:
    """Return the different lines of `text` that are not blank; raise AppError for none, or more than `most`."""
    lines = list(dict.fromkeys(line for line in map(str.strip, (text or "").splitlines()) if line))
    if not lines:
        raise AppError(f"there are no {name}: write one a line")
    if len(lines) > most:
        raise AppError(f"there are {len(lines):,} {name}, at most {most:,} are taken: leave some out")
    return lines


def label_scores(
    model: PreTrainedModel, processor: Any, upload: str | None, labels: str, templates: str, top_k: float
) -> dict[str, float]:
    """Return the scores of the best of `labels`, one a line, averaged over `templates`, one a line."""
    image = read_upload(upload)
    wanted = lines_of(labels, "labels", MAX_LABELS)
    around = lines_of(templates, "templates", MAX_LABELS) if (templates or "").strip() else [TEMPLATE]
    [answers] = ZeroShotClassifier(model, processor, wanted, around)(image, int(top_k))
    return {answer["label"]: answer["score"] for answer in answers}


def locate(
    model: PreTrainedModel, processor: Any, upload: str | None, texts: str, method: str, whole: bool
) -> tuple[Image.Image, Sequence[str], torch.Tensor]:
    """Return the image, at most MAX_SIDE pixels long, the texts, one a line, and the maps of `where`."""
    image = read_upload(upload)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    wanted = lines_of(texts, "texts", MAX_TEXTS)
    return image, wanted, where(model, processor, image, wanted, method, whole=whole)


def find(index: ImageIndex, upload: str | None, texts: str, count: float) -> list[tuple[Image.Image, str]]:
    """Return thumbnails of the images most like the texts, one a line, and the upload, each with its name and score.

    An image that can't be read any more is gray. Only the name of a file is shown, not its folder.
    """
    lines = [line for line in map(str.strip, (texts or "").splitlines()) if line]
    if not lines and upload is None:
        raise AppError("there is nothing to search for: write a text or upload an image")
    if len(lines) > MAX_TEXTS:
        raise AppError(f"there are {len(lines):,} texts, at most {MAX_TEXTS:,} are taken: leave some out")
    hits = index.search(lines, image=[] if upload is None else [read_upload(upload)], k=int(count))
    return [
        (
            thumbnail_of(index.source_of(hit["path"])) or Image.new("RGB", (SIDE, SIDE), "gray"),
            f"{hit['score']:.3f} {os.path.basename(hit['path'])}",
        )
        for hit in hits
    ]


__all__ = ["AppError", "find", "label_scores", "locate", "read_upload"]
