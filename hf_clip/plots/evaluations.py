"""Figures of evaluations: recall by class, confusions, recall curves, the search of a probe's C, benchmarks."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures import BAR_BACKGROUND, save_figure, shortened

MAX_BARS, MAX_CONFUSED = 40, 12
BAR, OUTSIDE = "#4472b8", "#c03030"


def draw_evaluation(title: str, details: Mapping[str, Any], output: Path) -> None:
    """Draw the details of a result, one panel for each kind; a failure leaves no partial file."""
    from matplotlib.figure import Figure

    panels: dict[str, Callable[[Any, Any], None]] = {
        "per_class_recall": _classes,
        "confusions": _confusions,
        "recall": _curves,
        "sweep": _sweep,
    }
    drawn = [(draw, details[name]) for name, draw in panels.items() if details.get(name)]
    if not drawn:
        raise ValueError(f"the result of {title} has nothing to draw: evaluate again without --resume")
    bars = min(len(details.get("per_class_recall", ())), MAX_BARS)
    figure = Figure((6.2 * len(drawn), max(4.2, 0.19 * bars + 1)), dpi=130, layout="constrained")
    figure.suptitle(title, parse_math=False)
    for axis, (draw, values) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        draw(axis, values)
    save_figure(figure, output)


def draw_benchmark(rows: Mapping[str, Sequence[Any]], tolerance: float | None, output: Path) -> None:
    """Draw the main metric of each data set: a dot for each model, a ring for the published value.

    Args:
        rows: For each model its `Comparison`s, of the same data sets in the same order.
        tolerance: Larger differences from the published value are written beside the dot, in red; None takes the
            tolerance of each data set.
        output: The file to write; a failure leaves no partial file.
    """
    from matplotlib.figure import Figure

    names = [f"{row.dataset}\n{row.metric}" for row in next(iter(rows.values()))]
    figure = Figure((7.5, 0.42 * len(names) + 1.4), dpi=130, layout="constrained")
    axis = figure.subplots()
    for model, figures in rows.items():
        dots = axis.plot(
            [row.measured for row in figures], range(len(names)), "o", markersize=5, label=shortened(Path(model).name)
        )
        for place, row in enumerate(figures):
            if not row.within(tolerance):
                axis.plot(row.measured, place, "o", markersize=5, color=OUTSIDE)
                axis.annotate(
                    f"{row.difference:+.4f}",
                    (row.measured, place),
                    (0, 7),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                    color=OUTSIDE,
                )
        published = [(row.published, place) for place, row in enumerate(figures) if row.published is not None]
        if published:
            color = dots[0].get_color()
            axis.plot(
                *zip(*published, strict=True),
                "o",
                markersize=10,
                fillstyle="none",
                color=color,
                label="published, a difference of more than "
                f"{'its tolerance' if tolerance is None else f'{tolerance:g}'} in red",
            )
    axis.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axis.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.4, -0.6))
    axis.grid(color=BAR_BACKGROUND)
    axis.set_axisbelow(True)
    for text in figure.legend(loc="outside upper center", ncols=2, fontsize=7).get_texts():
        text.set_parse_math(False)
    save_figure(figure, output)


def _classes(axis: Any, recall: Mapping[str, float]) -> None:
    names = list(recall)[:MAX_BARS]
    axis.barh(range(len(names)), [1] * len(names), color=BAR_BACKGROUND)
    axis.barh(range(len(names)), [recall[name] for name in names], color=BAR)
    axis.set_yticks(
        range(len(names)), [shortened(name.partition(" ")[2]) for name in names], fontsize=7, parse_math=False
    )
    rest = f" (the worst {MAX_BARS} of {len(recall)})" if len(recall) > MAX_BARS else ""
    axis.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6), xlabel="recall", title=f"by class{rest}")


def _confusions(axis: Any, pairs: Sequence[Sequence[Any]]) -> None:
    """Draw the most frequent pairs of true and predicted class as a matrix of counts."""
    shown = pairs[:MAX_CONFUSED]
    rows = list(dict.fromkeys(true for true, _, _ in shown))
    columns = list(dict.fromkeys(found for _, found, _ in shown))
    counts = [[0] * len(columns) for _ in rows]
    for true, found, count in shown:
        counts[rows.index(true)][columns.index(found)] += count
        color = "white" if count > shown[0][2] / 2 else "black"
        axis.text(columns.index(found), rows.index(true), count, ha="center", va="center", fontsize=7, color=color)
    axis.imshow(counts, cmap="Blues", vmin=0)
    axis.set_yticks(range(len(rows)), map(shortened, rows), fontsize=7, parse_math=False)
    axis.set_xticks(range(len(columns)), map(shortened, columns), fontsize=7, rotation=60, ha="right", parse_math=False)
    axis.set(xlabel="found", ylabel="true", title="most frequent confusions")


def _curves(axis: Any, curves: Mapping[str, Sequence[float]]) -> None:
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), marker=".", label=f"{name} retrieval")
    axis.set_xscale("log")
    axis.set(xlabel="k", ylabel="recall@k", ylim=(0, 1.02), title="recall")
    axis.legend()


def _sweep(axis: Any, points: Sequence[Sequence[float]]) -> None:
    axis.plot(*zip(*points, strict=True), marker=".", color=BAR)
    axis.set_xscale("log")
    axis.set(xlabel="C", ylabel="validation accuracy", title="search of C")


__all__ = ["draw_benchmark", "draw_evaluation"]
