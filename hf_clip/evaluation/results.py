"""Results of evaluations: JSON in clip_benchmark's schema, tables, and comparisons of models."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.rows import Rows
from ..metrics.outcomes import Outcomes, bootstrap_difference, paired_difference, proportion_interval
from ..utils.files import replacing
from ..utils.text import cell, short_path

if TYPE_CHECKING:
    from rich.table import Table

SAME_PROBE = 1e-3
FEW_IMAGES = 30
# the metric of each task that decides between models
MAIN = {
    "zeroshot_classification": "acc1",
    "zeroshot_multilabel": "mean_average_precision",
    "zeroshot_retrieval": "mean_recall@1",
    "linear_probe": "lp_acc1",
    "few_shot": "acc1",
}


class ResultsError(ValueError):
    """A results file is broken, or holds another model or other data."""


@dataclass
class Result:
    """The metrics of one model on one data set.

    Args:
        dataset: The data set's name.
        task: `zeroshot_classification`, `zeroshot_retrieval` or `linear_probe`, as clip_benchmark calls them; or
            `zeroshot_multilabel`, `few_shot`.
        model: The folder or Hub id.
        metrics: Fractions by name.
        outcomes: The metrics image by image, from which models are compared.
        details: Data of plots: recall by class, confused classes, curves.
        settings: The number of images, a digest of the data, a probe of the model, and so on: a saved result is reused
            only if they are the same.

    Example:
        >>> result = zero_shot(model, processor, "photos")
        >>> result.save("photos.json")
    """

    dataset: str
    task: str
    model: str
    metrics: dict[str, float]
    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def main(self) -> tuple[str, float]:
        """Return the name and the value of the metric that decides between models."""
        return MAIN[self.task], self.metrics[MAIN[self.task]]

    def to_json(self) -> dict[str, Any]:
        """Return clip_benchmark's schema, with `settings` and `details` beside it."""
        return {
            "dataset": self.dataset,
            "model": self.model,
            "pretrained": "",
            "task": self.task,
            "metrics": self.metrics,
            "language": "en",
            "settings": self.settings,
            "details": self.details,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` and the outcomes to a file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self.to_json() | {"outcomes": {name: outcome.to_json() for name, outcome in self.outcomes.items()}}
        with replacing(path) as work:
            work.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def check_is_of(self, settings: Mapping[str, Any], model: str, path: str | os.PathLike[str]) -> None:
        """Raise ResultsError, which names the file, unless the result has this model, data and settings."""
        near = max((abs(a - b) for a, b in zip(self.settings["probe"], settings["probe"], strict=False)), default=1.0)
        if len(self.settings["probe"]) != len(settings["probe"]) or near > SAME_PROBE:
            raise ResultsError(f"{path} is of another model, {self.model}, not {model}: choose another output")
        for key in settings.keys() - {"probe"}:
            if self.settings.get(key) != settings[key]:
                raise ResultsError(
                    f"{path} was measured with {key} {self.settings.get(key)}, not {settings[key]}: choose another "
                    "output"
                )

    def table(self) -> "Table":
        """Return the metrics as a table of rich."""
        return comparison([self])


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read the JSON of a saved result.

    Args:
        path: The JSON file.

    Returns:
        The result.

    Raises:
        ResultsError: The file holds no result.

    Example:
        >>> read_result("photos.json").metrics["acc1"]
        0.9
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        names = ("dataset", "task", "model", "metrics")
        found = Result(
            **{name: content[name] for name in names},
            outcomes={name: Outcomes.from_json(numbers) for name, numbers in content.get("outcomes", {}).items()},
            details=content.get("details", {}),
            settings=content["settings"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(
            f"{path} holds no result of an evaluation ({error}): delete it, or choose another"
        ) from error
    if not isinstance(found.settings, dict) or not isinstance(found.settings.get("probe"), list):
        raise ResultsError(f"{path} does not tell its model: delete it")
    return found


def comparison(results: Sequence[Result]) -> "Table":
    """Return a table of the results of several models on one data set.

    Args:
        results: One result for each model; the others are compared with the first.

    Returns:
        A table of rich: a row for each metric; for each further model its value and its difference from the first
        model. Proportions and differences have 95 % confidence intervals.

    Raises:
        ValueError: The results are of different data or tasks.

    Example:
        >>> rich.print(comparison([zero_shot(*base, "photos"), zero_shot(*tuned, "photos")]))
    """
    from rich.table import Table

    first = results[0]
    for other in results[1:]:
        if (other.dataset, other.task, other.settings.get("data")) != (
            first.dataset,
            first.task,
            first.settings.get("data"),
        ):
            raise ValueError(f"results are of {first.dataset} and {other.dataset}: compare models on the same data")
    size = size_of_settings(first.settings)[0]
    table = Table("metric", title=cell(f"{short_path(first.dataset)}: {first.task}, {size}"))
    notes = ["95 % confidence intervals in brackets"]
    if len(results) > 1:
        notes[:0] = ["differences from the first model"]
    if (images := first.settings.get("images", 0)) < FEW_IMAGES:
        notes.append(f"{images} images are too few to tell most models apart")
    table.caption = "; ".join(notes)
    for result in results:
        table.add_column(cell(short_path(result.model)), justify="right")
    for name, value in first.metrics.items():
        table.add_row(cell(name), _value(first, name, value), *(_cell(first, other, name) for other in results[1:]))
    return table


def difference(first: Result, second: Result, name: str) -> tuple[float, float, float] | None:
    """Return a metric's difference and its confidence interval, or None if it has no outcomes.

    The interval of proportions, such as an accuracy, is Newcombe's; of other metrics that of a bootstrap.
    """
    if name not in first.outcomes or name not in second.outcomes:
        return None
    outcomes = first.outcomes[name], second.outcomes[name]
    if all(one.is_proportion for one in outcomes):
        return paired_difference(*outcomes)
    return bootstrap_difference(*outcomes)


def size_of(images: int, classes: int | None = None, texts: int | None = None, chance: float | None = None) -> str:
    """Describe the size of a data set, and the chance level of its main metric."""
    kinds = f", {classes:,} classes" if classes else f", {texts:,} texts" if texts else ""
    return f"{images:,} images{kinds}, chance {chance_of(images, classes) if chance is None else chance:.4f}"


def size_of_settings(settings: Mapping[str, Any]) -> tuple[str, float]:
    """Describe the size of a data set by the settings of its result, and return the chance level."""
    images, classes, texts = (settings.get(name, 0) for name in ("images", "classes", "texts"))
    chance = settings.get("chance", chance_of(images, classes))
    return size_of(images, classes, texts, chance), chance


def chance_of(images: int, classes: int | None = None) -> float:
    """Return the chance level: of the accuracy over classes, or of the recall of one image at the first try."""
    return 1 / (classes or images or 1)


def chance_of_several(targets: np.ndarray) -> float:
    """Return the mean average precision of guessing, given 0 or 1 (images, classes): the share of a class's images."""
    shares = targets.mean(0)
    return float(shares[shares > 0].mean()) if targets.any() else 0.0


def size_of_rows(rows: Rows) -> str:
    """Describe the size of a data set as `size_of` does, before it is measured."""
    if rows.is_multilabel:
        return size_of(len(rows), len(rows.labels), chance=chance_of_several(rows.multi_hot()))
    texts = sum(len(row.texts) for row in rows)
    return size_of(len(rows.grouped()), None if texts else len(rows.labels), texts)


def _value(result: Result, name: str, value: float) -> str:
    outcomes = result.outcomes.get(name)
    if outcomes is None or not outcomes.is_proportion:
        return f"{value:.4f}"
    low, high = proportion_interval(value, len(outcomes.hits))
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _cell(first: Result, second: Result, name: str) -> str:
    value = f"{second.metrics[name]:.4f}"
    found = difference(first, second, name)
    if found is None:
        return f"{value}\n{second.metrics[name] - first.metrics[name]:+.4f}"
    return f"{value}\n{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]"


__all__ = [
    "Result",
    "ResultsError",
    "chance_of",
    "chance_of_several",
    "comparison",
    "difference",
    "read_result",
    "size_of",
    "size_of_rows",
    "size_of_settings",
]
