"""The benchmark: data sets in clip_benchmark's layout, and the figures published for OpenAI's checkpoints."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.rows import DataError
from ..data.wds import find_wds, read_wds
from ..embedding.identity import name_of
from ..utils.text import cell, listing
from .prompt_sets import prompts
from .results import Result, read_result
from .tasks import prompt_settings, retrieval, settings_of, zero_shot

if TYPE_CHECKING:
    from rich.table import Table

PUBLISHED = Path(__file__).parent / "data" / "published.json"
RETRIEVAL = ("flickr30k", "mscoco_captions")
# they need metadata or a task that clip_benchmark's copies lack
NOT_HERE = ("food101", "winogavil", "wilds/", "fairness/")


class Comparison(NamedTuple):
    """A measured metric and its published figure, None if nothing is published."""

    dataset: str
    metric: str
    measured: float
    published: float | None

    @property
    def difference(self) -> float | None:
        """Return measured minus published."""
        return None if self.published is None else self.measured - self.published

    def within(self, tolerance: float) -> bool:
        """Return True if the figures differ by at most `tolerance`, or nothing is published."""
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
            settings = settings_of(model, processor, _measured_rows(dataset, rows))
            if dataset not in RETRIEVAL:
                settings |= prompt_settings(rows, None, rows.templates or _templates(dataset))
            known.check_is_of(settings, name_of(model), file)
            report(f"{dataset}: known from {file}")
            yield known
            continue
        options: dict[str, Any] = {"dataset": dataset, "batch_size": batch_size, "workers": workers, "store": store}
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
        found.append(Comparison(result.dataset, entry["metric"], result.metrics[entry["metric"]], published))
    return found


def comparison_table(rows: Sequence[Comparison], tolerance: float) -> "Table":
    """Return a table of measured and published figures; a star marks a difference beyond the tolerance."""
    from rich.table import Table

    table = Table("data set", "metric")
    for column in ("measured", "published", "difference"):
        table.add_column(column, justify="right")
    for row in rows:
        published = "" if row.published is None else f"{row.published:.4f}"
        mark = "" if row.within(tolerance) else " *"
        difference = "" if row.difference is None else f"{row.difference:+.4f}{mark}"
        table.add_row(cell(row.dataset), cell(row.metric), f"{row.measured:.4f}", published, difference)
    return table


__all__ = ["Comparison", "benchmark", "compare", "comparison_table"]
