"""The benchmark: data sets in clip_benchmark's layout, and the figures published for OpenAI's checkpoints."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.images import Exif
from ..data.rows import DataError
from ..data.wds import find_wds, read_wds
from ..embedding.identity import name_of
from ..utils.text import cell, listing, short_path
from .prompt_sets import prompts
from .results import Result, read_result, size_of_settings
from .tasks import prompt_settings, retrieval, settings_of, zero_shot

if TYPE_CHECKING:
    from rich.table import Table

PUBLISHED = Path(__file__).parent / "data" / "published.json"
RETRIEVAL = ("flickr30k", "mscoco_captions")
# they need metadata or a task that clip_benchmark's copies lack
NOT_HERE = ("food101", "winogavil", "wilds/", "fairness/")

LEAST_TOLERANCE = 0.002
# The published figures come from open_clip's table. LAION's benchmark.csv measured four of OpenAI's checkpoints (the
# ViTs) on the same data sets with its own code, templates and decoders; these are the largest differences of the two
# tables where they exceed LEAST_TOLERANCE. So a right model may differ by as much.
TOLERANCES = {
    "vtab/svhn": 0.215,  # other templates
    "vtab/clevr_closest_object_distance": 0.065,  # other class names
    "vtab/caltech101": 0.019,
    "mnist": 0.018,
    "renderedsst2": 0.0105,
    "vtab/clevr_count_all": 0.008,
    "gtsrb": 0.008,
    "vtab/kitti_closest_vehicle_distance": 0.0075,
    "vtab/pcam": 0.0055,
    "vtab/eurosat": 0.005,
    "vtab/pets": 0.0045,
    "vtab/dtd": 0.004,
    "cars": 0.0035,
    "vtab/cifar100": 0.0035,
    "vtab/resisc45": 0.003,
    "fgvc_aircraft": 0.003,
    "vtab/flowers": 0.0025,
}


def tolerance_of(dataset: str) -> float:
    """Return the difference from the published figure that a right model may have."""
    return TOLERANCES.get(dataset, LEAST_TOLERANCE)


class Comparison(NamedTuple):
    """A measured metric on a data set, and its published figure, None if nothing is published."""

    dataset: str
    metric: str
    measured: float
    published: float | None
    size: str = ""
    chance: float | None = None

    @property
    def difference(self) -> float | None:
        """Return measured minus published."""
        return None if self.published is None else self.measured - self.published

    def within(self, tolerance: float | None = None) -> bool:
        """Return True if the figures differ by at most `tolerance` (by default the data set's), or one is missing."""
        tolerance = tolerance_of(self.dataset) if tolerance is None else tolerance
        # 1e-9: published figures have four decimals, whose difference as floats may be a little more
        return self.difference is None or abs(self.difference) <= tolerance + 1e-9


def benchmark(
    model: Any,
    processor: Any,
    datasets: Sequence[str],
    root: str | os.PathLike[str] | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    revision: str | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    store: str | os.PathLike[str] | None = None,
    exif: Exif = "ignore",
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[Result]:
    """Evaluate a model on data sets in clip_benchmark's layout, one after the other.

    Args:
        model: A CLIP with both towers, in evaluation mode.
        processor: Its processor.
        datasets: Names such as `imagenetv2`, `vtab/dtd`, `flickr30k`.
        root: The folder with `wds_NAME` for each; the Hub's `clip-benchmark/wds_NAME` unless given.
        output: A folder for the `NAME.json` of each result, written as soon as it is known.
        resume: Read the results in `output` instead of measuring them again.
        revision: The commit, branch or tag on the Hub.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.
        store: A folder that keeps the embeddings of images.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.
        report: Called with a line for each result that was read.

    Yields:
        The result of each data set.

    Raises:
        DataError: A data set is missing, or cannot be measured.
        ResultsError: A result in `output` is broken, or holds another model or other data.

    Example:
        >>> for result in benchmark(model, processor, ["imagenetv2"], root="data"):
        ...     print(result.metrics["acc1"])
    """
    for dataset in datasets:
        if dataset.startswith(NOT_HERE):
            raise DataError(f"{dataset} cannot be measured on clip_benchmark's copies: leave it out")
    for dataset in datasets:
        rows = read_wds(find_wds(dataset, root=root, revision=revision))
        file = None if output is None else Path(output) / f"{dataset.replace('/', '-')}.json"
        if file is not None and resume and file.exists():
            known = read_result(file)
            settings = settings_of(model, processor, _measured_rows(dataset, rows), exif)
            if dataset not in RETRIEVAL:
                settings |= prompt_settings(rows, None, rows.templates or _templates(dataset))
            known.check_is_of(settings, name_of(model), file)
            report(f"{dataset}: known from {file}")
            yield known
            continue
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "store": store, "exif": exif}
        options["dataset"] = dataset
        if dataset in RETRIEVAL:
            result = retrieval(model, processor, rows, **options)
        else:
            result = zero_shot(model, processor, rows, templates=rows.templates or _templates(dataset), **options)
        if file is not None:
            result.save(file)
        yield result


def _measured_rows(dataset: str, rows: Any) -> Any:
    return rows.grouped() if dataset in RETRIEVAL else rows


def _templates(dataset: str) -> list[str] | None:
    try:
        return prompts(dataset).templates
    except ValueError:  # a data set of one's own
        return None


@cache
def _published() -> dict[str, Any]:
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))["datasets"]


def compare(results: Sequence[Result], checkpoint: str | None) -> list[Comparison]:
    """Compare results with the published figures of one of OpenAI's checkpoints.

    Args:
        results: Results of `benchmark`.
        checkpoint: A name such as `ViT-B/32`, or None for no comparison.

    Returns:
        The main metric of each data set.

    Raises:
        ValueError: The checkpoint is none of the nine.
    """
    known = _published()
    names = sorted({name for entry in known.values() for name in entry["values"]})
    if checkpoint is not None and checkpoint not in names:
        raise ValueError(f"nothing is published of {checkpoint}: choose from {listing(names, 20)}")
    found = []
    for result in results:
        entry = known.get(result.dataset, {"metric": next(iter(result.metrics)), "values": {}})
        published = None if checkpoint is None else entry["values"].get(checkpoint)
        size, chance = size_of_settings(result.settings)
        measured = result.metrics[entry["metric"]]
        found.append(Comparison(result.dataset, entry["metric"], measured, published, size, chance))
    return found


def comparison_table(rows: Sequence[Comparison], tolerance: float | None = None) -> "Table":
    """Return a table of measured and published figures, with the sizes of the data sets below.

    A star marks a difference beyond the tolerance.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table("data set", "metric", caption_justify="left")
    notes = [f"{short_path(row.dataset)}: {row.size}" for row in rows if row.size]
    if tolerance is None and any(row.published is not None and row.dataset in TOLERANCES for row in rows):
        notes.append(f"tolerances above {LEAST_TOLERANCE}: the tables of open_clip and LAION differ by as much")
    table.caption = Text("\n").join(map(cell, notes))
    for column in ("measured", "published", "difference", "tolerance"):
        table.add_column(column, justify="right")
    for row in rows:
        published = "" if row.published is None else f"{row.published:.4f}"
        mark = "" if row.within(tolerance) else " *"
        difference = "" if row.difference is None else f"{row.difference:+.4f}{mark}"
        limit = "" if row.published is None else f"{tolerance_of(row.dataset) if tolerance is None else tolerance:g}"
        table.add_row(
            cell(short_path(row.dataset)), cell(row.metric), f"{row.measured:.4f}", published, difference, limit
        )
    return table


__all__ = ["Comparison", "benchmark", "compare", "comparison_table"]
