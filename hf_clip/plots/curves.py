"""A figure of a training run: the losses and the accuracies that were logged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures import CHANCE_LINE, save_figure

LOSSES = {"loss": "training loss", "eval_loss": "evaluation loss"}
MARKED_POINTS = 20  # longer curves are drawn without markers
HIDDEN_METRICS = ("runtime", "per_second", "preparation_time", "recall@5", "recall@10")


def draw_curves(history: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Draw the losses and accuracies that a trainer logged over its steps; a failure leaves no partial file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure((9, 3.6), dpi=150, layout="constrained")
    losses, shares = figure.subplots(1, 2)
    for name, points in _series(history).items():
        axis = losses if "loss" in name else shares
        label = LOSSES.get(name, name.removeprefix("eval_"))
        axis.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < MARKED_POINTS else "")
    losses.set(xlabel="step", ylabel="loss")
    shares.set(xlabel="step", ylabel="share", ylim=(-0.02, 1.02))
    for axis in (losses, shares):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.lines:
            axis.legend(fontsize=7)
    save_figure(figure, output)


def draw_sweep(rows: Sequence[Mapping[str, float]], chosen: float, output: Path) -> None:
    """Draw the measures of averages of a model and its fine-tune (figure 1 of WiSE-FT).

    Args:
        rows: For each average its `alpha`, and measures by name: first that of the new task, then those to keep.
        chosen: The alpha that is marked.
        output: The file, in the format of its suffix.
    """
    from matplotlib.figure import Figure

    alphas = [row["alpha"] for row in rows]
    learned, *kept = [name for name in rows[0] if name != "alpha"]
    figure = Figure((9 if kept else 4.5, 3.6), dpi=150, layout="constrained")
    by_alpha, *curves = figure.subplots(1, 2 if kept else 1, squeeze=False)[0]
    for name in (learned, *kept):
        by_alpha.plot(alphas, [row[name] for row in rows], label=name, marker=".")
    by_alpha.axvline(chosen, **CHANCE_LINE)
    by_alpha.set(xlabel=f"alpha, the share of the fine-tune (chosen: {chosen:g})", ylabel="share", ylim=(-0.02, 1.02))
    by_alpha.legend(fontsize=7)
    for axis in curves:
        for name in kept:
            points = [(row[name], row[learned]) for row in rows]
            axis.plot(*zip(*points, strict=True), label=name, marker=".")
            for alpha, point in zip(alphas, points, strict=True):
                axis.annotate(f"{alpha:g}", point, xytext=(3, 3), textcoords="offset points", fontsize=6)
        axis.set(xlabel="kept", ylabel=f"learned: {learned}")
        axis.legend(fontsize=7)
    save_figure(figure, output)


def _series(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            wanted = name == "loss" or name.startswith("eval_")
            if wanted and not any(part in name for part in HIDDEN_METRICS):
                series.setdefault(name, []).append((entry["step"], value))
    return series


__all__ = ["draw_curves", "draw_sweep"]
