"""COCO's annotation files: images with captions."""

import json
import re
from pathlib import Path
from typing import Any

from .errors import DataError

SPLIT = re.compile(r"(train|val|test|minival)\d*")


def read_coco(path: Path) -> tuple[list[dict[str, Any]], Path]:
    """Read an annotation file such as captions_val2017.json, and find the folder of its images.

    Args:
        path: The file. Its images lie beside it or one level up, or there in a folder `images` or of the split, such as
            `val2017`.

    Returns:
        A mapping of `image` and `text`, a list of captions, for each image; and the folder that the images count from.

    Raises:
        DataError: The file holds no captions, or its images are nowhere.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[Any, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no JSON of captions as COCO's: it lacks {error}") from error
    if unknown := next((image for image in captions if image not in names), None):
        raise DataError(f"{path} has captions of the image {unknown!r}, which its images do not list")
    rows = [{"image": names[image], "text": texts} for image, texts in captions.items()]
    if not rows:
        raise DataError(f"{path} has no captions: give at least one image with a caption")
    return rows, _folder_of(path, str(rows[0]["image"]))


def _folder_of(path: Path, name: str) -> Path:
    here = path.absolute().parent
    found = SPLIT.search(path.stem)
    names = [".", "images", *([found[0], f"images/{found[0]}"] if found else [])]
    places = [parent / folder for parent in (here, here.parent) for folder in names]
    for place in places:
        if (place / name).is_file():
            return place
    raise DataError(f"{name} of {path} is in none of {', '.join(map(str, places))}: put the images in one of them")


__all__ = ["read_coco"]
