"""One function that reads a data set from any of the layouts."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from ..utils.packages import require
from ..utils.text import first_line, listing
from .coco import read_coco
from .images import files_below, image_paths, is_image_file, left_out
from .in_memory import read_in_memory
from .labels import in_order, match_names
from .rows import DataError, Rows, make_rows
from .tables import READERS, read_table
from .tars import read_tars

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
Columns = Mapping[str, Any]
LAYOUTS = (
    "a folder of class folders, of images with a .txt each, with metadata.csv, .tsv, .jsonl or .parquet; such a table, "
    "tars, COCO's captions, or hf://datasets/OWNER/NAME"
)
HUB = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(:(?P<split>.+))?")


def read_rows(data: str | os.PathLike | Iterable[Mapping[str, Any]], **columns: Any) -> Rows:
    """Read a data set of images with captions or labels, without opening an image.

    Args:
        data: A folder of class folders; a folder with a `metadata` table; a table, whose relative paths count from its
            folder; a folder of images with a `.txt` of captions beside each; a tar, a folder of tars, or a pattern of
            such as `train-*.tar`; COCO's captions, a `.json`; a folder that `datasets` saved, or a data set of the Hub,
            `hf://datasets/OWNER/NAME@REVISION:SPLIT`, whose split is `train` unless named; or mappings of columns to
            values.
            The lines of a `classnames.txt`, in the folder or the one above, name class folders and integer labels: each
            folder by the line that is equal, or by the line at its place if none is. Without it class folders are named
            by themselves, with blanks for underscores. Folders are in alphabetical order, numbers by their value.
        **columns: `image_column`, `text_column`, `label_column`, where their names are unusual; `allow_schemes`, as in
            `make_rows`, for tables with paths outside of their folder or addresses of object stores.

    Returns:
        The rows, with `labels` where there are classes.

    Raises:
        DataError: The data set is empty, or cannot be read; the sentence says where.
    """
    if not isinstance(data, str | os.PathLike):
        return _in_memory(data, "the data", columns)
    if str(data).startswith("hf://"):
        return _from_hub(str(data), columns)
    path = Path(data)
    if path.is_dir():
        return _folder(path, columns)
    paths = [path] if path.is_file() else sorted(map(Path, glob(str(path), recursive=True)))
    if not paths:
        raise DataError(f"there is no {path}: give {LAYOUTS}")
    if all(file.suffix == ".tar" for file in paths):
        return tar_rows(paths, str(path), columns)
    if len(paths) == 1 and paths[0].suffix.lower() == ".json":
        mappings, folder = read_coco(paths[0])
        return make_rows(mappings, str(path), folder=folder, **columns)
    if len(paths) > 1 or paths[0].suffix.lower() not in READERS:
        raise DataError(f"{path} is no data set: give {LAYOUTS}")
    return _table(paths[0], columns)


def _folder(folder: Path, columns: Columns) -> Rows:
    tables = [path for suffix in READERS if (path := folder / f"metadata{suffix}").is_file()]
    if len(tables) > 1:
        raise DataError(f"{folder} has several tables, {listing([table.name for table in tables])}: keep one")
    if tables:
        return _table(tables[0], columns)
    if tars := sorted(folder.glob("*.tar")):
        return tar_rows(tars, str(folder), columns)
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        require("datasets", "datasets", str(folder))
        from datasets import load_from_disk  # type: ignore[import-not-found]

        return _in_memory(load_from_disk(str(folder)), str(folder), columns, folder)
    return _captioned(folder, columns) or _class_folders(folder)


def _in_memory(data: Any, name: str, columns: Columns, folder: Path | None = None) -> Rows:
    mappings, labels = read_in_memory(data)
    return make_rows(mappings, name, labels=labels, folder=folder, **columns)


def _from_hub(address: str, columns: Columns) -> Rows:
    """Download a split of a data set of the Hub, or find it in the cache."""
    found = HUB.fullmatch(address)
    if found is None:
        raise DataError(f"{address} is no data set of the Hub: give hf://datasets/OWNER/NAME@REVISION:SPLIT")
    require("datasets", "datasets", address)
    from datasets import config, load_dataset
    from datasets.exceptions import DatasetsError  # type: ignore[import-not-found]

    try:
        data = load_dataset(found["name"], revision=found["revision"], split=found["split"] or "train")
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(f"{address} cannot be read: {first_line(error)}") from error
    # a stranger's rows may name files of the cache, where the data set itself lies, and no others
    return _in_memory(data, address, columns, Path(config.HF_CACHE_HOME))


def _captioned(folder: Path, columns: Columns) -> Rows | None:
    """Read images with a file of captions beside each, one a line; return None where no image has one."""
    files = files_below(folder)
    captions = {path for path in files if path.endswith(".txt")}
    if not captions:  # class folders, of maybe a million images
        return None
    images = [path for path in files if is_image_file(os.path.basename(path))]
    texts = {image: f"{os.path.splitext(image)[0]}.txt" for image in images}
    if captions.isdisjoint(texts.values()):
        return None
    lacking = [image for image, text in texts.items() if text not in captions]
    splits = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.lower() in SPLITS)
    if len(splits) > 1:
        raise DataError(f"{folder} holds splits ({listing(splits, 4)}): give one of them")
    if lacking:
        raise DataError(
            f"{len(lacking):,} of {len(images):,} images in {folder} have no .txt beside them, such as {lacking[0]}: "
            "give each its captions, or take away the .txt files"
        )
    mappings = [{"image": image, "text": _captions(Path(text))} for image, text in texts.items()]
    return make_rows(mappings, str(folder), **columns)


def _captions(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}") from error


def _table(path: Path, columns: Columns) -> Rows:
    labels = _lines(path.parent, "classnames.txt")
    return make_rows(read_table(path), str(path), labels=labels, folder=path.parent, **columns)


def _class_folders(folder: Path) -> Rows:
    folders = {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    classes = [folders[name] for name in in_order(list(folders))]
    beside = [path.name for path in folder.iterdir() if is_image_file(path.name)]
    if beside or not classes:
        found = f"images beside its folders, such as {beside[0]}" if beside and classes else "no class folders"
        raise DataError(f"{folder} has {found}: give {LAYOUTS}")
    _check_no_splits(folder, classes)
    own = [path.name.replace("_", " ") for path in classes]
    if skipped := left_out((path for each in classes for path in files_below(each)), str(folder)):
        logging.getLogger(__name__).warning("skipped: %s", skipped)
    names = _lines(folder, "classnames.txt") or own
    if len(names) != len(classes):
        raise DataError(
            f"{folder} has {len(classes)} class folders, classnames.txt has {len(names)} lines: name each folder, in "
            "the order of their names"
        )
    names = match_names(own, names, "classnames.txt")
    mappings = [{"image": file, "label": place} for place, path in enumerate(classes) for file in image_paths(path)]
    if not mappings:
        raise DataError(f"there are no images in {folder}: give {LAYOUTS}")
    return make_rows(mappings, str(folder), labels=names, templates=_templates(folder))


def _check_no_splits(folder: Path, classes: list[Path]) -> None:
    """Raise DataError, with the commands meant, for a folder of splits that each are a data set."""
    splits = [path for path in classes if path.name.lower() in SPLITS and _is_data_set(path)]
    if len(splits) < min(2, len(classes)):
        return
    train = next((path for path in splits if path.name.lower().startswith("train")), splits[0])
    other = next((path for path in splits if path is not train), train)
    raise DataError(
        f"{folder} holds splits, not classes ({listing([path.name for path in splits], 4)}): train on one by "
        f"hf-clip finetune {train}, and measure on another by hf-clip evaluate zero-shot {other}"
    )


def _is_data_set(folder: Path) -> bool:
    """Return True if a folder holds folders, tars or a table, rather than the images of a class."""
    tables = {f"metadata{suffix}" for suffix in READERS}
    return any(path.is_dir() or path.suffix == ".tar" or path.name in tables for path in folder.iterdir())


def tar_rows(paths: list[Path], name: str, columns: Columns) -> Rows:
    """Read archives in the order given, with the class names and templates beside or above them."""
    folder = paths[0].parent
    return make_rows(
        read_tars(paths, several=True),
        name,
        labels=_lines(folder, "classnames.txt"),
        templates=_templates(folder),
        **columns,
    )


def _templates(folder: Path) -> list[str]:
    """Read the prompts that clip_benchmark keeps beside its data sets, with `{c}` for the label."""
    return [line.replace("{c}", "{}") for line in _lines(folder, "zeroshot_classification_templates.txt")]


def _lines(folder: Path, name: str) -> list[str]:
    for place in (folder, folder.absolute().parent):
        if (place / name).is_file():
            lines = (place / name).read_text(encoding="utf-8-sig").splitlines()
            return [line.strip() for line in lines if line.strip()]
    return []


__all__ = ["read_rows", "tar_rows"]
