"""Class labels: their values, their order, and their names."""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import DataError

WORDNET_ID = re.compile(r"n\d{8}")


def in_order(names: Sequence[str]) -> list[str]:
    """Sort class names; numbers by their value, as 10 comes after 9 in every published list of class names."""
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if numbers else (0, name))


def clean_label(value: Any, where: str) -> str | int | None:
    """Return a label as stripped text, integer, or None if there is none."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        return int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError:
        raise DataError(
            f"{where} has the label {value!r}, a {type(value).__name__}: give each image one name or integer"
        ) from None


def label_places(values: Sequence[str | int | None], names: Sequence[str]) -> tuple[list[str], Mapping[Any, int]]:
    """Return the class names and the place of each label among them.

    Args:
        values: The label of each row.
        names: The class names, if they are known: integers and numbers in text are then places among them. Without
            names, each distinct label is a class of its own.
    """
    texts = {value for value in values if isinstance(value, str)}
    numbers = {value for value in values if isinstance(value, int) and value >= 0}
    if names:
        places: dict[Any, int] = {number: number for number in numbers if number < len(names)}
        places |= {text: int(text) for text in texts if text.isdecimal() and int(text) < len(names)}
        return list(names), places | {name: place for place, name in enumerate(names)}
    labels: list[Any] = in_order(list(texts)) if texts else sorted(numbers)
    return list(map(str, labels)), {label: place for place, label in enumerate(labels)}


def match_names(folders: Sequence[str], names: Sequence[str], source: str) -> list[str]:
    """Return a class name for each folder: the equal one if the folders have these names, else the one at its place.

    Args:
        folders: The names of folders, in order.
        names: The class names, as many.
        source: Where the class names come from, for errors.

    Raises:
        DataError: Some folders have the names and others do not.
    """
    known = {plain_name(name): name for name in names}
    other = [folder for folder in folders if plain_name(folder) not in known]
    # numbers are places, even if a class has a number for its name
    if len(other) == len(folders) or all(folder.isdecimal() for folder in folders):
        return list(names)
    if other:
        raise DataError(f"{source} has no line for the folder {other[0]}, but for others: name each, or none by itself")
    return [known[plain_name(folder)] for folder in folders]


def plain_name(name: str) -> str:
    """Return a class name without case, blanks and separators, as names are compared."""
    return re.sub(r"[\W_]+", "", name).casefold()


def saved_classifier(labels: str) -> Path | None:
    """Return the file of a saved classifier that is given in place of labels; None for labels.

    Raises:
        DataError: There is no such file.
    """
    if not labels.endswith(".safetensors"):
        return None
    if not Path(labels).is_file():
        raise DataError(f"there is no file {labels}")
    return Path(labels)


def check_words(labels: Sequence[str], name: str) -> None:
    """Raise DataError if class names are WordNet ids, which no text encoder knows."""
    if labels and all(WORDNET_ID.fullmatch(label) for label in labels):
        raise DataError(
            f"the classes of {name} are named by WordNet ids, such as {labels[0]}: give their names in a "
            "classnames.txt, or evaluate with the prompts of imagenet1k"
        )


__all__ = ["check_words", "clean_label", "in_order", "label_places", "match_names", "plain_name", "saved_classifier"]
