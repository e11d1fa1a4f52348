"""Prompts of published evaluations: class names and templates, packaged or read from OpenAI's own file."""

import ast
import json
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..data.labels import WORDNET_ID, plain_name
from ..utils.text import listing

PACKAGED = Path(__file__).parent / "data" / "prompts.json"
IDS = Path(__file__).parent / "data" / "wordnet_ids.json"  # of ImageNet, in the published order
# data sets that are measured with the templates of another one
SAME_PROMPTS = dict.fromkeys(("imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-o", "imagenet-r"), "imagenet1k")

# OpenAI's names of data sets that clip_benchmark calls otherwise
OTHER_NAMES = {
    "clevr_counts": "clevr_count_all",
    "flowers102": "flowers",
    "imagenet": "imagenet1k",
    "kitti_distance": "kitti_closest_vehicle_distance",
    "oxford_pets": "pets",
    "rendered_sst2": "renderedsst2",
    "stanford_cars": "cars",
}


class Prompts(NamedTuple):
    """Class names and templates of a data set.

    A class name is one text or a list of synonyms; a template has `{}` for it. `labels` is empty where only templates
    are packaged.
    """

    labels: list[Any]
    templates: list[str]


def prompts(name: str, file: str | os.PathLike[str] | None = None) -> Prompts:
    """Return the class names and templates behind the published figures of a data set.

    Args:
        name: A data set as clip_benchmark or OpenAI calls it, such as `imagenet1k`, `vtab/dtd`, `oxford_pets`; with
            `file`, a heading in it.
        file: OpenAI's `data/prompts.md`, for its data sets and synonyms; the packaged prompts unless given.

    Returns:
        Class names in the order of the published data set, empty where only templates are packaged, and templates.

    Raises:
        ValueError: There is no such data set, or `file` is not in the layout of `data/prompts.md`.

    Example:
        >>> labels, templates = prompts("imagenet1k")
        >>> len(labels), len(templates)
        (1000, 80)
    """
    if file is not None:
        known = read_prompts(file)
        if name not in known:
            raise ValueError(f"{file} has no prompts for {name!r}: choose from {listing(sorted(known), 100)}")
        return known[name]
    known = _packaged()
    own = name.removeprefix("vtab/")
    own = OTHER_NAMES.get(own, own)
    key = SAME_PROMPTS.get(own, own)
    if key not in known:
        raise ValueError(
            f"there are no prompts for {name!r}: read them from OpenAI's data/prompts.md (prompts(name, file)), give "
            f"labels and templates of your own, or choose from {listing(sorted(known), 100)}"
        )
    labels, templates = known[key]
    return Prompts(list(labels) if key == own else [], list(templates))


def names_for(own: Sequence[str], name: str) -> list[Any] | None:
    """Match the classes of one's own copy of a data set with the packaged class names.

    Args:
        own: Names of the copy's classes, in its order: the names of its folders, usually.
        name: The data set, as for `prompts`.

    Returns:
        The packaged name of each class: by equal names, whatever their capitals and separators; by WordNet ids, also of
        a part of ImageNet; or by the published order, if the classes are numbered from 0 or 1 on. None if the classes
        are others.

    Raises:
        ValueError: The classes cannot be matched: some names are equal and others are not, or numbers are missing.
    """
    if own and all(WORDNET_ID.fullmatch(label) for label in own):
        return _names_of_ids(own, name)
    known = prompts(name).labels
    texts = [label if isinstance(label, str) else label[0] for label in known]
    places = {plain_name(text): label for text, label in zip(texts, known, strict=True)}
    missing = [label for label in own if plain_name(label) not in places]
    if known and len(missing) == len(own) and all(label.isdecimal() for label in own):
        numbers = sorted(map(int, own))
        if numbers not in (list(range(len(known))), list(range(1, len(known) + 1))):
            raise ValueError(
                f"the classes of the data are {len(own)} numbers, {name} has {len(known)} classes: give the names of "
                "the classes, in the order of the data"
            )
        return [known[int(label) - numbers[0]] for label in own]
    if len(own) != len(known) or len(missing) == len(own):
        return None
    found = [places[plain_name(label)] for label in own if plain_name(label) in places]
    if sorted(found) != sorted(known):
        raise ValueError(
            f"the classes of the data are not those of {name}, {listing(missing or own, 3)} for example: give their "
            "names, in the order of the data"
        )
    return found


def _names_of_ids(own: Sequence[str], name: str) -> list[Any]:
    key = name.removeprefix("vtab/")
    key = OTHER_NAMES.get(key, key)
    if SAME_PROMPTS.get(key, key) != "imagenet1k":
        raise ValueError(f"the classes of the data are WordNet ids, those of {name} are names: give their names")
    ids = json.loads(IDS.read_text(encoding="utf-8"))
    names = dict(zip(ids, prompts("imagenet1k").labels, strict=True))
    if unknown := [label for label in own if label not in names]:
        raise ValueError(f"ImageNet's 1,000 classes do not include {listing(unknown, 3)}: give their names")
    return [names[label] for label in own]


def read_prompts(path: str | os.PathLike[str]) -> dict[str, Prompts]:
    """Read OpenAI's `data/prompts.md`: lists `classes` and `templates` under a heading for each data set."""
    text = Path(path).read_text(encoding="utf-8")
    found = {}
    for name, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        lists = dict(re.findall(r"^(classes|templates) = (\[.*?^\])", body, re.MULTILINE | re.DOTALL))
        try:
            found[name] = Prompts(ast.literal_eval(lists["classes"]), ast.literal_eval(lists["templates"]))
        except (KeyError, ValueError, SyntaxError) as error:
            raise ValueError(f"{path} has no lists `classes` and `templates` under {name}: {error}") from error
    if not found:
        raise ValueError(f"{path} has no headings of data sets: give OpenAI's data/prompts.md")
    return found


@cache
def _packaged() -> dict[str, Prompts]:
    content = json.loads(PACKAGED.read_text(encoding="utf-8"))["prompts"]
    return {name: Prompts(entry["labels"], entry["templates"]) for name, entry in content.items()}


__all__ = ["Prompts", "names_for", "prompts", "read_prompts"]
