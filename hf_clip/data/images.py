"""References to images: in files, at addresses, inside tars and tables, or in memory."""

import io
import logging
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.util import find_spec
from threading import Lock
from typing import Any, Literal, get_args

from PIL import Image, ImageOps, UnidentifiedImageError

from ..utils.places import place_at
from ..utils.text import as_line, first_line, listing

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip


# formats that look like images to people: read where pillow-heif is installed, and others that Pillow cannot read
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# of JPEG, PNG, GIF, TIFF, WebP and other RIFF, JPEG 2000
FIRST_BYTES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP  ")
UNREAD_SUFFIXES = (".arw", ".cr2", ".cr3", ".dng", ".jxl", ".nef", ".orf", ".raf", ".rw2")

logger = logging.getLogger(__name__)

Exif = Literal["ignore", "apply"]
Decode = Literal["full", "draft"]
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
TURNED_BY = '--exif apply turns them (exif="apply" in Python)'


class UnreadableImageError(ValueError):
    """Raised for a file that cannot be opened or decoded as an image."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRef:
    """Refer to one image, wherever it lies; nothing is read before `open`.

    References are small and travel to other processes: pickled, or as plain values in an Arrow column (`as_row`). A
    member of a tar is found by its offset, so no archive stays open and any number of workers may read at once.

    Args:
        source: The path or address of the file that holds the image; or the image itself, as bytes, a PIL image, an
            array, or a tensor.
        name: The image's name for people, such as a path below a folder, or `ARCHIVE:MEMBER`.
        key: The image's identity: one line of Unicode that no other image of a data set shares.
        stamp: The known `version`, where listing the data set told it.
        span: The offset and the size in bytes of a member of the tar `source`.
        cell: The column, row group and row of a cell of the parquet file `source`.
        refused: Why the image must not be read, as that of an address which nobody allowed; `open` raises it.

    Example:
        >>> ImageRef.of("photo.jpg").open().size
        (640, 480)
    """

    source: Any
    name: str
    key: str
    stamp: str | None = None
    span: tuple[int, int] | None = None
    cell: tuple[str, int, int] | None = None
    refused: str | None = None

    @classmethod
    def of(cls, value: Any, name: str | None = None, schemes: Collection[str] = ()) -> "ImageRef":
        """Refer to an image in any of the forms in which callers have it.

        Addresses other than http, https and data are read by fsspec, with the reader's credentials and, by some kinds,
        from any file or by running code: they are refused unless `schemes` names their kind.

        Args:
            value: A path, an address, bytes, a PIL image, an array, a tensor, a mapping with `bytes` or `path` as
                `datasets` stores images, a row that `as_row` made, or a reference, which is returned as it is.
            name: The name in errors; the path or address unless given.
            schemes: Kinds of addresses that may be read besides http, https and data, such as s3.
        """
        if isinstance(value, ImageRef):
            return value
        if isinstance(value, Mapping):
            if "source" in value:
                return cls.from_row(value)
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str | os.PathLike):
            path = os.fspath(value)
            return cls(path, name or path, as_line(path), refused=_refusal(path, schemes))
        # the object's address in memory: equal for an image that comes twice, and the reference keeps it alive
        return cls(value, name or "an image in memory", f"{type(value).__name__} at {id(value):#x}")

    @classmethod
    def in_table(cls, value: Any, folder: str, name: str | None = None, schemes: Collection[str] = ()) -> "ImageRef":
        """Refer to the image of a table's cell, which may come from a stranger.

        Args:
            value: The cell. A path counts from the table's folder and must stay below it, unless `schemes` has "file".
            folder: The folder of the table, a path or an address.
            name: The name in errors; the path or address unless given.
            schemes: Kinds of addresses that may be read, as in `of`.
        """
        if isinstance(value, Mapping) and value.get("bytes") is None:
            value = value.get("path")
        if not isinstance(value, str) or not value or _scheme(value):
            return cls.of(value, name, schemes)
        path = value if os.path.isabs(value) else f"{folder.rstrip('/')}/{value}" if folder else value
        is_below = not os.path.relpath(os.path.normpath(path), folder or os.curdir).startswith(os.pardir)
        refused = f"it lies outside of {folder or 'the folder'}: --allow-scheme file (allow_schemes) allows that"
        if _scheme(folder):  # in an object store
            is_below = not os.path.isabs(value) and not os.path.normpath(value).startswith(os.pardir)
        return cls(path, name or path, as_line(path), refused=None if is_below or "file" in schemes else refused)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ImageRef":
        """Rebuild a reference from its `as_row`."""
        span = None if row["offset"] is None else (row["offset"], row["size"])
        cell = None if row["column"] is None else (row["column"], row["group"], row["row"])
        return cls(os.fsdecode(row["source"]), row["name"], row["key"], row["stamp"], span, cell, row["refused"])

    def as_row(self) -> dict[str, Any]:
        """Return the reference to a file as bytes, texts and integers: the fields of an Arrow struct.

        The path is bytes, since the name of a file need not be valid Unicode.
        """
        offset, size = self.span or (None, None)
        column, group, row = self.cell or (None, None, None)
        return {
            "source": os.fsencode(self.source),
            "name": as_line(self.name),
            "key": self.key,
            "stamp": self.stamp,
            "offset": offset,
            "size": size,
            "column": column,
            "group": group,
            "row": row,
            "refused": self.refused,
        }

    @property
    def in_memory(self) -> bool:
        """True of an image that lies in no file."""
        return not isinstance(self.source, str)

    @property
    def version(self) -> str | None:
        """Text that changes with the image or its file; None in memory and at addresses whose listing told none."""
        if self.stamp is not None or self.in_memory or "://" in self.source:
            return self.stamp
        return file_version(self.source)

    def fetched(self) -> "ImageRef":
        """Download an image that lies at an address; any other reference is returned as it is.

        Downloading takes time and no core: callers do it while the cores are at work.
        """
        from ..model.image_reading_hf_clip import is_address, open_image

        if self.refused is not None or self.in_memory or _scheme(self.source) is None or self.cell is not None:
            return self
        return replace(self, source=open_image(self.source) if is_address(self.source) else self._content())

    def open(self, exif: Exif = "ignore", tally: "ImageTally | None" = None, draft_side: int | None = None) -> Any:
        """Decode the image in its own mode; arrays and tensors are returned as they are.

        Args:
            exif: "ignore" leaves the pixels as they are stored, as the original does; "apply" turns and mirrors them as
                the EXIF orientation says, so that phone photos stand upright.
            tally: Counts images with an orientation or with 16 bits a channel.
            draft_side: Decode a JPEG at a half, a quarter or an eighth of its size where no side becomes shorter than
                this: faster, and close to the pixels of the original.

        Raises:
            UnreadableImageError: The image cannot be opened or decoded; the error names it.
        """
        try:
            image = self.peek()
            if draft_side is not None and isinstance(image, Image.Image) and image is not self.source:
                image.draft(None, (draft_side, draft_side))  # which only JPEGs heed
            if isinstance(image, Image.Image):
                image.load()
            if tally is not None:
                tally.count(image)
            if exif == "apply" and is_rotated(image):
                image = ImageOps.exif_transpose(image)
        except Exception as error:  # the plugins of Pillow and of file systems raise what they like
            cause = error.__cause__ or error  # open_image names the file again
            reason = "it is no image" if isinstance(cause, UnidentifiedImageError) else first_line(cause)
            raise UnreadableImageError(f"cannot read {self.name[:200]}: {reason}") from error
        return image

    def peek(self) -> Any:
        """Open the image without decoding it, for its size; errors of Pillow and file systems pass through."""
        from ..model.image_reading_hf_clip import open_image

        has_heif()
        if self.refused is not None:
            raise ValueError(self.refused)
        content = self._content()
        if content is None or (isinstance(content, str) and not content):
            raise ValueError("there is no image")
        if isinstance(content, bytes):
            return Image.open(io.BytesIO(content))
        if isinstance(content, str):
            return open_image(content)
        if not (isinstance(content, Image.Image) or hasattr(content, "ndim")):
            kinds = "a path, an address, bytes, a PIL image, an array or a tensor"
            raise TypeError(f"an image is {kinds}, not {type(content).__name__}")
        return content

    def _content(self) -> Any:
        """Return a path or an address for `open_image`, or the content of any other source."""
        from ..model.image_reading_hf_clip import check_size, is_address

        content = self.source
        if self.span is not None:
            check_size(self.span[1])
            return read_span(self.source, *self.span)
        if self.cell is not None:
            column, group, row = self.cell
            value = _column(self.source, group, column)[row].as_py()
            found = ImageRef.in_table(value, self.source.rpartition("/")[0])
            if found.refused is not None:
                raise ValueError(found.refused)
            content = found.source
        if isinstance(content, str) and _scheme(content) and not is_address(content):
            place = place_at(content)
            check_size(place.fs.info(place.path).get("size") or 0)
            content = place.fs.cat_file(place.path)
        return content


def draft_side(image_processor: Any, decode: Decode) -> int | None:
    """Return the `draft_side` of `ImageRef.open`, twice the side to which the processor resizes; None for "full".

    Raises:
        ValueError: The way of decoding is unknown, or the processor does not shrink images to a shortest side.
    """
    if decode not in get_args(Decode):
        raise ValueError(f"decode is {decode!r}: choose full or draft")
    if decode == "full":
        return None
    short = dict(image_processor.size or {}).get("shortest_edge") if image_processor.do_resize else None
    if short is None:
        raise ValueError(
            f"decode is draft, and this {type(image_processor).__name__} does not resize the shortest side: leave it "
            "at full"
        )
    return 2 * short


class ImageTally:
    """Count images, and among them the rotated ones and those of 16 bits a channel."""

    def __init__(self) -> None:
        self.images = self.rotated = self.sixteen_bits = 0
        self._counting = Lock()

    def count(self, image: Any) -> None:
        """Count one decoded image; arrays and tensors are neither turned nor of 16 bits."""
        mode = image.mode if isinstance(image, Image.Image) else ""
        with self._counting:
            self.images += 1
            self.rotated += is_rotated(image)
            self.sixteen_bits += mode.startswith("I") or mode == "F"

    def take(self) -> tuple[int, int]:
        """Return the counts of rotated and of 16-bit images, and begin anew."""
        with self._counting:
            found = self.rotated, self.sixteen_bits
            self.images = self.rotated = self.sixteen_bits = 0
        return found

    def warn(self, exif: Exif, remedy: str = TURNED_BY) -> None:
        """Log a warning of the counted images that a model has seen in another way than people."""
        for sentence in surprises(self.images, self.rotated, self.sixteen_bits, exif, remedy):
            logger.warning(sentence)


def is_rotated(image: Any) -> bool:
    """Return True if an image has an EXIF orientation that is not upright."""
    try:
        return isinstance(image, Image.Image) and image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # a damaged EXIF block makes Pillow raise anything, and no image unreadable
        return False


def surprises(images: int, rotated: int, sixteen_bits: int, exif: Exif, remedy: str = TURNED_BY) -> list[str]:
    """Describe the images that a model has seen in another way than people do, one sentence for each kind.

    Args:
        images: The number of images that were read.
        rotated: Those with an EXIF orientation.
        sixteen_bits: Those with 16 bits a channel.
        exif: Whether the orientation was applied.
        remedy: What turns them.
    """
    found = []
    if rotated and exif == "ignore":
        found.append(f"{rotated:,} of {images:,} images carry a rotation, which is ignored: {remedy}")
    if sixteen_bits:
        outcome = "have 16 bits a channel and become white, as in the original"
        found.append(f"{sixteen_bits:,} of {images:,} images {outcome}: convert them to 8 bits first")
    return found


def _scheme(source: str) -> str | None:
    """Return the kind of an address in lower case, such as https or data; None for a path."""
    found = re.match(r"([a-z][a-z0-9+.-]*)(?:://|::.*://)|(data):", source, re.IGNORECASE)
    return None if found is None else (found[1] or found[2]).lower()


def _refusal(source: str, schemes: Collection[str]) -> str | None:
    """Return why an address may not be read, None for paths and for addresses that may."""
    scheme = _scheme(source)
    if scheme in (None, "http", "https", "data"):
        return None
    if "::" in source:
        return "addresses with :: are not read"
    if scheme not in schemes:
        return f"addresses of the kind {scheme}:// are not read: --allow-scheme {scheme} (allow_schemes) allows them"
    return None


def read_span(path: str, offset: int, size: int) -> bytes:
    """Read `size` bytes of a file from `offset` on: a member of a tar."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


@lru_cache(maxsize=4)  # the images of a row group follow each other
def _column(path: str, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    place = place_at(path)
    with place.fs.open(place.path, "rb") as opened:
        return pq.ParquetFile(opened).read_row_group(group, [column])[column]


def file_version(path: str) -> str:
    """Return the size and modification time of a file, following links; `missing` if it does not exist."""
    try:
        stat = os.stat(path)
    except OSError:  # such as a dangling link: whoever opens it will say so
        return "missing"
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def image_paths(folder: str | os.PathLike[str]) -> list[str]:
    """List all files below `folder` with the suffix of an image, sorted, without hidden files and folders."""
    return [path for path in files_below(folder) if is_image_file(os.path.basename(path)) and not os.path.isdir(path)]


def files_below(folder: str | os.PathLike[str]) -> list[str]:
    """List all files below `folder`, and the links to folders, which are not followed; sorted, without hidden ones."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, files in os.walk(os.fspath(folder), onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [os.path.join(parent, name) for name in (*files, *links) if not name.startswith(".")]
    return sorted(found)


def is_image_file(name: str) -> bool:
    """Return True if a file's name has the suffix of an image that can be read and is not hidden."""
    suffixes = IMAGE_SUFFIXES + HEIF_SUFFIXES if has_heif() else IMAGE_SUFFIXES
    return not name.startswith(".") and name.lower().endswith(suffixes)


def _is_unread_image(name: str) -> bool:
    """Return True if people would take a file for an image, and it cannot be read here."""
    looks = name.lower().endswith(HEIF_SUFFIXES + UNREAD_SUFFIXES)
    return looks and not name.startswith(".") and not is_image_file(name)


def left_out(paths: Iterable[str], folder: str = "", local: bool = True) -> str:
    """Describe the images among other files that are not read: by kind, with counts and names; empty without any.

    Args:
        paths: Files, and links to folders.
        folder: What the names in the description count from.
        local: Whether the files lie on this machine, so that those without a suffix can be looked into.
    """
    unread, bare, links = [], [], []
    for path in paths:
        below = path.removeprefix(folder).lstrip("/")
        name = os.path.basename(path)
        if _is_unread_image(name):
            unread.append(below)
        elif local and os.path.isdir(path):
            links.append(below)
        elif local and "." not in name and _begins_as_image(path):
            bare.append(below)
    found = []
    if unread:
        needed = any(name.lower().endswith(HEIF_SUFFIXES) for name in unread)
        advice = 'install the extra "heif" to read HEIC' if needed else "convert them to JPEG or PNG"
        found.append(f"{len(unread):,} files look like images and cannot be read ({listing(unread, 3)}): {advice}")
    if bare:
        found.append(f"{len(bare):,} images have no suffix and are not read ({listing(bare, 3)}): give them one")
    if links:
        found.append(
            f"{len(links):,} links to folders are not followed ({listing(links, 3)}): name the folders instead"
        )
    return "; ".join(found)


def _begins_as_image(path: str) -> bool:
    """Return True if a regular file has the first bytes of an image."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would wait for a writer
            return False
        with open(path, "rb") as file:
            return file.read(12).startswith(FIRST_BYTES)
    except OSError:
        return False


@cache
def has_heif() -> bool:
    """Return True if pillow-heif is installed, and make Pillow use it."""
    if find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


__all__ = [
    "IMAGE_SUFFIXES",
    "Decode",
    "Exif",
    "ImageRef",
    "ImageTally",
    "UnreadableImageError",
    "draft_side",
    "file_version",
    "files_below",
    "has_heif",
    "image_paths",
    "is_image_file",
    "is_rotated",
    "left_out",
    "read_span",
    "surprises",
]
