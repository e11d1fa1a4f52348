"""A figure of a training run: the losses and the accuracies that were logged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures import save_figure

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


def _series(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            wanted = name == "loss" or name.startswith("eval_")
            if wanted and not any(part in name for part in HIDDEN_METRICS):
                series.setdefault(name, []).append((entry["step"], value))
    return series


__all__ = ["draw_curves"]
