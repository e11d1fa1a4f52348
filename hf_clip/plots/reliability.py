"""A reliability diagram: scores against the share of them that came true, before and after calibration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figures import save_figure

AFTER, BEFORE = "#4472b8", "#a0a0a0"


def draw_reliability(report: Mapping[str, Any], output: Path) -> None:
    """Draw the bins of a calibration's report with their 95 % intervals; a failure leaves no partial file."""
    from matplotlib.figure import Figure

    figure = Figure((4.6, 4.4), dpi=130, layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    for (name, bins), color in zip(report["reliability"].items(), (BEFORE, AFTER), strict=False):
        scores, shares = ([part[key] for part in bins] for key in ("score", "share"))
        ends = [[part["share"] - part["low"] for part in bins], [part["high"] - part["share"] for part in bins]]
        label = f"{name}: error {report['error'][name]:.3f}"
        axis.errorbar(scores, shares, ends, color=color, marker="o", markersize=4, linewidth=1, capsize=2, label=label)
    axis.set(xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axis.set_title(f"{report['images']:,} images", fontsize=9)
    axis.legend(fontsize=8, loc="upper left")
    save_figure(figure, output)


__all__ = ["draw_reliability"]
