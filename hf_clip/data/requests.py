"""Bounds of requests from strangers, shared by the app and the server, and the images and prompts within them."""

import io
from collections.abc import Sequence

from PIL import Image

from .images import Exif, ImageRef, UnreadableImageError

UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_UPLOAD_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
MAX_SCANS = 200  # of a progressive JPEG; cameras and programs write about 10
MAX_MAP_SIDE = 1024
MAX_LABELS, MAX_TEMPLATES, MAX_PROMPTS = 1000, 100, 4000
MAX_MAPPED_TEXTS = 8
MAX_CHARACTERS = 100_000
START_OF_SCAN = b"\xff\xda"


class RequestError(ValueError):
    """Raised for a request that its sender can put right."""


def open_upload(content: bytes) -> Image.Image:
    """Open an uploaded image without decoding it.

    Raises:
        RequestError: It is not an image in UPLOAD_FORMATS, or it exceeds a bound.
    """
    if len(content) > MAX_UPLOAD_BYTES:
        raise RequestError(f"the file has over {MAX_UPLOAD_BYTES:,} bytes: make it smaller")
    try:
        image = Image.open(io.BytesIO(content), formats=UPLOAD_FORMATS)
        check_pixels(image.width * image.height)
        _check_scans(image, content)
        return image
    except RequestError:
        raise
    except Image.DecompressionBombError:
        raise RequestError(f"the image has over {MAX_PIXELS:,} pixels: make it smaller") from None
    except Exception:  # plugins of Pillow raise arbitrary exceptions, with paths of the server in their messages
        raise _unreadable() from None


def decode_upload(opened: Image.Image, exif: Exif = "apply") -> Image.Image:
    """Decode an image of `open_upload`, and close its file; "apply" turns it as its EXIF orientation says."""
    with opened:
        try:
            return ImageRef.of(opened).open(exif)
        except UnreadableImageError:  # which names the cause, such as paths of the server
            raise _unreadable() from None


def check_pixels(count: int) -> None:
    """Raise RequestError for an image of more than MAX_PIXELS pixels."""
    if count > MAX_PIXELS:
        raise RequestError(f"the image has {count:,} pixels, at most {MAX_PIXELS:,} are read: make it smaller")


def check_prompts(labels: Sequence[str], templates: Sequence[str]) -> None:
    """Raise RequestError for too many labels, templates or prompts, or a template with other braces than {}.

    A format such as {:>900000000} would fill the memory.
    """
    for name, values, most in (("labels", labels, MAX_LABELS), ("templates", templates, MAX_TEMPLATES)):
        if len(values) > most:
            raise RequestError(f"there are {len(values):,} {name}, at most {most:,} are read: leave some out")
        check_characters(name, sum(map(len, values)))
    for template in templates:
        if "{}" not in template or set(template.replace("{}", "")) & {"{", "}"}:
            raise RequestError(
                f"the template {template[:80]!r} needs {{}} for the label, and no other braces: change it"
            )
    if len(labels) * len(templates) > MAX_PROMPTS:
        raise RequestError(
            f"{len(labels):,} labels in {len(templates):,} templates are {len(labels) * len(templates):,} prompts, at "
            f"most {MAX_PROMPTS:,} are computed: leave some out"
        )


def check_characters(name: str, count: int) -> None:
    """Raise RequestError for more than MAX_CHARACTERS characters of `name`."""
    if count > MAX_CHARACTERS:
        raise RequestError(f"the {name} have {count:,} characters, at most {MAX_CHARACTERS:,} are read: shorten them")


def _unreadable() -> RequestError:
    return RequestError(f"the file cannot be read as an image: upload one of {', '.join(UPLOAD_FORMATS)}")


def _check_scans(image: Image.Image, content: bytes) -> None:
    """Raise RequestError for a JPEG of so many scans, each of which passes over all pixels, that it takes minutes."""
    # compressed data of a JPEG escapes 0xff, so these bytes are a marker wherever they stand
    has_scans = image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"
    if has_scans and content.count(START_OF_SCAN) > MAX_SCANS:
        raise RequestError(
            f"the JPEG has {content.count(START_OF_SCAN):,} scans, at most {MAX_SCANS} are read: save it again"
        )


__all__ = [
    "MAX_CHARACTERS",
    "MAX_LABELS",
    "MAX_MAPPED_TEXTS",
    "MAX_MAP_SIDE",
    "MAX_PIXELS",
    "MAX_TEMPLATES",
    "MAX_UPLOAD_BYTES",
    "RequestError",
    "check_characters",
    "check_prompts",
    "decode_upload",
    "open_upload",
]
