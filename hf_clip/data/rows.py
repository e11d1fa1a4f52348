"""Rows of images with captions or a label, whatever they are read from."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from .errors import DataError
from .images import Exif, ImageRef
from .labels import clean_label, label_places

IMAGE_COLUMNS = (
    "image",
    "image_path",
    "file_name",
    "filename",
    "filepath",
    "file",
    "path",
    "jpg",
    "png",
    "webp",
    "url",
)
TEXT_COLUMNS = ("text", "texts", "caption", "captions", "txt", "title")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "category")


@dataclass(frozen=True, slots=True)
class Row:
    """One image with its captions, its label, or the labels of several classes.

    Args:
        image: Where the image lies; nothing is read before `open`.
        texts: The captions; empty where only a label is known.
        label: The place of the class in `Rows.labels`.
        classes: The places of all classes that the image shows, maybe none, where an image may show several.
    """

    image: ImageRef
    texts: tuple[str, ...] = ()
    label: int | None = None
    classes: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The image's name in errors and progress."""
        return self.image.name

    def open(self, exif: Exif = "ignore") -> Any:
        """Decode the image as `ImageRef.open` does; raise UnreadableImageError, which names it."""
        return self.image.open(exif)


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """A data set whose rows are in memory and whose images are not.

    Args:
        rows: The rows.
        labels: The names of the classes; empty where rows have captions only.
        templates: The prompts that came with the data set, with `{}` for the label.
        name: What the data set was read from.
    """

    rows: list[Row]
    labels: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    name: str = "data"

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def is_multilabel(self) -> bool:
        """Return True if an image may show several classes."""
        return any(row.classes is not None for row in self.rows)

    def multi_hot(self) -> np.ndarray:
        """Return 1 where an image of a multi-label data set shows a class, else 0: float32 (images, classes)."""
        targets = np.zeros((len(self.rows), len(self.labels)), np.float32)
        for number, row in enumerate(self.rows):
            targets[number, list(row.classes or ())] = 1
        return targets

    def grouped(self) -> "Rows":
        """Join the rows of one file into one row with the captions of all, as retrieval counts images."""
        texts: dict[Any, list[str]] = {}
        first: dict[Any, Row] = {}
        for number, row in enumerate(self.rows):
            key = number if row.image.in_memory else row.image.key
            first.setdefault(key, row)
            texts.setdefault(key, []).extend(row.texts)
        rows = [replace(row, texts=tuple(texts[key])) for key, row in first.items()]
        return Rows(rows, self.labels, self.templates, self.name)


def make_rows(
    mappings: Iterable[Mapping[str, Any]],
    name: str,
    *,
    labels: Sequence[str] = (),
    templates: Sequence[str] = (),
    folder: Path | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    allow_schemes: Collection[str] = (),
) -> Rows:
    """Make rows of mappings that name an image and its captions or label, by usual names of columns unless given.

    Args:
        mappings: One mapping for each row; the columns of the first one decide.
        name: What the rows come from, for errors.
        labels: Names of the classes, of which labels that are integers are the places.
        templates: Prompts that come with the data set.
        folder: Where relative paths of images begin; the working directory unless given.
        image_column: The column of images.
        text_column: The column of captions, each one text or a list of texts.
        label_column: The column of labels, each a name or an integer.
        allow_schemes: Kinds of addresses that the rows may name besides http, https and data, such as s3; "file" for
            paths outside of `folder`.

    Raises:
        DataError: No row, a column is missing or ambiguous, or a row has neither caption nor label.
    """
    mappings = list(mappings)
    if not mappings:
        raise DataError(f"{name} has no rows: give at least one image with a caption or a label")
    columns = list(mappings[0])
    image = _column("image", image_column, IMAGE_COLUMNS, columns, name)
    text = _column("text", text_column, TEXT_COLUMNS, columns, name)
    label = _column("label", label_column, LABEL_COLUMNS, columns, name)
    if image is None or (text is None and label is None):
        lacking = "image" if image is None else "text or label"
        known = IMAGE_COLUMNS if image is None else (*TEXT_COLUMNS, *LABEL_COLUMNS)
        raise DataError(
            f"{name} has the columns {', '.join(columns)}, none of them for {lacking}: call one {', '.join(known)}, "
            f"or pass {lacking.split()[0]}_column="
        )
    several = [mapping.get(label) for mapping in mappings if label is not None]
    if isinstance(several[0] if several else None, MultiHot):
        return _multilabel(mappings, several, name, image, labels, templates, folder, allow_schemes)
    values = [
        None if label is None else clean_label(mapping.get(label), f"row {number} of {name}")
        for number, mapping in enumerate(mappings, 1)
    ]
    labels, places = label_places(values, labels)
    rows = []
    for number, (mapping, value) in enumerate(zip(mappings, values, strict=True), 1):
        where = f"row {number} of {name}"
        texts = () if text is None else _texts(mapping.get(text), where)
        if isinstance(mapping.get(image), str | None) and not mapping.get(image):
            raise DataError(f"{where} names no image in the column {image}: give its path, or remove the row")
        if not texts and value is None:
            raise DataError(f"{where} has neither caption nor label: give one, or remove the row")
        source = _reference(mapping[image], folder, where, allow_schemes)
        rows.append(Row(source, texts, _place(value, places, len(labels), where)))
    return Rows(rows, labels, list(templates), name)


class MultiHot(tuple):
    """0 or 1 for each class, of an image that may show several."""


def _multilabel(
    mappings: Sequence[Mapping[str, Any]],
    values: Sequence[Any],
    name: str,
    image: str,
    labels: Sequence[str],
    templates: Sequence[str],
    folder: Path | None,
    schemes: Collection[str],
) -> Rows:
    labels = list(labels) or [str(place) for place in range(len(values[0]))]
    rows = []
    for number, (mapping, value) in enumerate(zip(mappings, values, strict=True), 1):
        where = f"row {number} of {name}"
        if not isinstance(value, MultiHot) or len(value) != len(labels) or not set(value) <= {0, 1}:
            raise DataError(f"{where} has no 0 or 1 for each of {len(labels)} classes: give each image such a list")
        places = tuple(place for place, shown in enumerate(value) if shown)
        rows.append(Row(_reference(mapping[image], folder, where, schemes), (), None, places))
    return Rows(rows, labels, list(templates), name)


def _column(kind: str, given: str | None, known: Sequence[str], columns: Sequence[str], name: str) -> str | None:
    if given is not None:
        if given not in columns:
            raise DataError(f"{name} has no column {given}: it has {', '.join(columns)}")
        return given
    found = [column for column in columns if column.lower() in known]
    if len(found) > 1:
        raise DataError(f"{name} has several columns for {kind}, {', '.join(found)}: pass {kind}_column=")
    return found[0] if found else None


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if wrong := [text for text in values if not isinstance(text, str)]:
        raise DataError(f"{where} has the caption {wrong[0]!r}, which is no text: write captions as texts")
    return tuple(text.strip() for text in values if text.strip())


def _place(value: str | int | None, places: Mapping[Any, int], classes: int, where: str) -> int | None:
    if value is None:
        return None
    if value not in places:
        raise DataError(f"{where} has the label {value!r}, which is none of the {classes} classes: list it there")
    return places[value]


def _reference(value: Any, folder: Path | None, where: str, schemes: Collection[str]) -> ImageRef:
    """Refer to a row's image; one in memory is named by its row."""
    name = None if isinstance(value, str | Path) else where
    if folder is None:  # rows that a program made, not a file
        return ImageRef.of(value, name, schemes)
    image = ImageRef.in_table(value, str(folder), name, schemes)
    if image.refused is not None:
        raise DataError(f"{where} names the image {str(value)[:200]}, which is not read: {image.refused}")
    return image


__all__ = ["DataError", "MultiHot", "Row", "Rows", "make_rows"]
