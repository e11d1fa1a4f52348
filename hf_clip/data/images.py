"""Images that are opened when they are needed, from files, addresses, tars and memory."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip


class UnreadableImageError(ValueError):
    """Raised for a file that can't be opened or decoded, and for what is no image."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file inside a tar archive, found by its place: no archive stays open, so workers may read at once."""

    archive: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"

    def read(self) -> bytes:
        """Read the file's content."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def decode_image(source: Any, name: str) -> Any:
    """Open and decode one image in its own mode; arrays and tensors are returned as they are.

    Args:
        source: A path, an address, a TarMember, bytes, a mapping with `bytes` or `path` as `datasets` stores images, a
            PIL image, an array, or a tensor.
        name: The name of the image in an error.

    Raises:
        UnreadableImageError: The image can't be opened or decoded.
    """
    import torch  # who only lists images need not wait for it

    if isinstance(source, np.ndarray | torch.Tensor):
        return source
    try:
        image = _opened(source)
        image.load()
    except Exception as error:  # the plugins of Pillow raise what they like
        cause = error.__cause__ or error  # open_image names the file again
        reason = "it is no image" if isinstance(cause, UnidentifiedImageError) else str(cause) or type(cause).__name__
        raise UnreadableImageError(f"can't read {name}: {reason}") from error
    return image


def _opened(source: Any) -> Image.Image:
    from ..model.image_processing_hf_clip import open_image

    if isinstance(source, dict):
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if isinstance(source, TarMember):
        source = source.read()
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    if isinstance(source, str | os.PathLike):
        return open_image(source)
    if isinstance(source, Image.Image):
        return source
    raise TypeError(
        f"an image is a path, an address, bytes, a PIL image, an array or a tensor, not {type(source).__name__}"
    )


def image_paths(folder: str | os.PathLike[str]) -> list[str]:
    """List all files below `folder` with the suffix of an image, sorted, without hidden files and folders."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, files in os.walk(os.fspath(folder), onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in files if is_image_file(name)]
    return sorted(found)


def is_image_file(name: str) -> bool:
    """Return True if a file's name has the suffix of an image and is not hidden."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def located(source: Any, folder: Path) -> Any:
    """Resolve a relative path of a table against the table's folder."""
    from ..model.image_processing_hf_clip import is_address

    return source if not isinstance(source, str) or is_address(source) else os.path.join(folder, source)


__all__ = [
    "IMAGE_SUFFIXES",
    "TarMember",
    "UnreadableImageError",
    "decode_image",
    "image_paths",
    "is_image_file",
    "located",
]
