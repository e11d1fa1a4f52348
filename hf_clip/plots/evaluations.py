"""Figures of evaluations: recall by class, confusions, recall curves, the search of a probe's C, benchmarks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .figures import BAR_BACKGROUND, CHANCE_LINE, save_figure, shortened

MAX_BARS, MAX_CONFUSED = 40, 12
CANDIDATES = {"text": "texts", "image": "images"}  # what is searched
BAR, OUTSIDE = "#4472b8", "#c03030"


def draw_evaluation(title: str, details: Mapping[str, Any], output: Path, chance: float | None = None) -> None:
    """Draw the details of a result, one panel for each kind; a failure leaves no partial file.

    Args:
        title: What was measured, and on how many images.
        details: The details of the result.
        output: The file to write.
        chance: The accuracy of guessing, a dotted line.
    """
    from matplotlib.figure import Figure

    panels: dict[str, Callable[[Any, Any], None]] = {
        "per_class_recall": partial(_classes, chance=chance),
        "per_class_average_precision": partial(_classes, chance=chance, kind="average precision"),
        "confusions": _confusions,
        "recall": _curves,
        "sweep": partial(_sweep, chance=chance),
    }
    drawn = [(draw, details[name]) for name, draw in panels.items() if details.get(name)]
    if not drawn:
        raise ValueError(f"the result of {title} has nothing to draw: evaluate again without --resume")
    bars = min(max(len(details.get(name, ())) for name in panels if name.startswith("per_class")), MAX_BARS)
    figure = Figure((6.2 * len(drawn), max(4.2, 0.19 * bars + 1)), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
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

    first = next(iter(rows.values()))
    names = ["\n".join(filter(None, [row.dataset, row.metric, row.size])) for row in first]
    figure = Figure((7.5, 0.5 * len(names) + 1.4), dpi=130, layout="constrained")
    axis = figure.subplots()
    chances = [(row.chance, place) for place, row in enumerate(first) if row.chance is not None]
    if chances:
        axis.plot(*zip(*chances, strict=True), "|", color="black", markersize=12, label="chance")
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


def _classes(axis: Any, recall: Mapping[str, float], chance: float | None, kind: str = "recall") -> None:
    names = list(recall)[:MAX_BARS]
    axis.barh(range(len(names)), [1] * len(names), color=BAR_BACKGROUND)
    axis.barh(range(len(names)), [recall[name] for name in names], color=BAR)
    axis.set_yticks(
        range(len(names)), [shortened(name.partition(" ")[2]) for name in names], fontsize=7, parse_math=False
    )
    rest = f" (the worst {MAX_BARS} of {len(recall)})" if len(recall) > MAX_BARS else ""
    axis.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6), xlabel=kind, title=f"by class{rest}")
    if chance is not None:
        axis.axvline(chance, label="chance", **CHANCE_LINE)
        axis.legend(fontsize=7, loc="lower right")


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


def _curves(axis: Any, curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    for name, points in curves.items():
        [line] = axis.plot(*zip(*points, strict=True), marker=".", label=f"{name} retrieval")
        candidates = points[-1][0]  # where the recall is 1
        matches = max(1, candidates / curves["image"][-1][0])  # texts of an image; a text has one image
        guessed = [1 - (1 - place / candidates) ** matches for place, _ in points]
        style = CHANCE_LINE | {"color": line.get_color(), "label": f"chance, {candidates:,} {CANDIDATES[name]}"}
        axis.plot([place for place, _ in points], guessed, **style)
    axis.set_xscale("log")
    axis.set(xlabel="k", ylabel="recall@k", ylim=(0, 1.02), title="recall")
    axis.legend(fontsize=7)


def _sweep(axis: Any, points: Sequence[Sequence[float]], chance: float | None) -> None:
    axis.plot(*zip(*points, strict=True), marker=".", color=BAR)
    axis.set_xscale("log")
    axis.set(xlabel="C", ylabel="validation accuracy", title="search of C")
    if chance is not None:
        axis.axhline(chance, label="chance", **CHANCE_LINE)
        axis.legend(fontsize=7)


__all__ = ["draw_benchmark", "draw_evaluation"]
