"""Data sets in the layout of clip_benchmark: `wds_NAME/SPLIT/0.tar` and on, from a folder or the Hub."""

import os
from pathlib import Path

from ..utils.text import first_line
from .read import tar_rows
from .rows import DataError, Rows

ORGANIZATION = "clip-benchmark"
BESIDE = ("classnames.txt", "zeroshot_classification_templates.txt")


def wds_name(dataset: str) -> str:
    """Return the folder's name of a data set, such as wds_vtab-dtd of vtab/dtd."""
    return f"wds_{dataset.replace('/', '-')}"


def find_wds(
    dataset: str, split: str = "test", *, root: str | os.PathLike[str] | None = None, revision: str | None = None
) -> Path:
    """Find a data set below a folder; without a folder, download it from the Hub, or resume a download.

    Args:
        dataset: A name such as `imagenetv2` or `vtab/dtd`.
        split: The folder of tars to find.
        root: The folder that holds `wds_NAME`; the Hub's `clip-benchmark/wds_NAME` unless given.
        revision: The commit, branch or tag on the Hub.

    Returns:
        The folder `wds_NAME`.

    Raises:
        DataError: There is no such folder, or the Hub cannot give it.
    """
    if root is not None:
        folder = Path(root) / wds_name(dataset)
        if not (folder / split).is_dir():
            raise DataError(f"there is no {folder / split}: keep the tars of {dataset} there, or leave out the root")
        return folder
    from huggingface_hub import snapshot_download

    repository = f"{ORGANIZATION}/{wds_name(dataset)}"
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=[f"{split}/*", *BESIDE]
        )
    except (OSError, ValueError) as error:  # the Hub's errors are OSErrors
        reason = first_line(error)
        raise DataError(f"cannot download {repository} ({reason}): keep {wds_name(dataset)} below a root") from error
    return Path(folder)


def read_wds(folder: str | os.PathLike[str], split: str = "test") -> Rows:
    """Read one split of a `wds_NAME` folder, its shards in the order of their numbers.

    Args:
        folder: The folder `wds_NAME`.
        split: Its folder of tars.

    Returns:
        The rows, with the class names and templates of the data set.

    Raises:
        DataError: A shard that nshards.txt counts is missing, or one is cut short.
    """
    place = Path(folder) / split
    shards = {path.stem: path for path in place.glob("*.tar")}
    counted = place / "nshards.txt"
    try:
        count = int(counted.read_text()) if counted.is_file() else len(shards)
    except ValueError as error:
        raise DataError(f"{counted} holds no number: copy it again") from error
    missing = [number for number in range(count) if str(number) not in shards]
    if missing or not count:
        raise DataError(f"{place} has {len(shards)} of {count} shards: {missing[0] if missing else 0}.tar is missing")
    return tar_rows([shards[str(number)] for number in range(count)], str(place), {})


__all__ = ["find_wds", "read_wds", "wds_name"]
