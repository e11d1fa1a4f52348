"""Rows as tables, as JSON, as a chart of all of them, and as the chart in README."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .common import Row

OURS, OPTIMIZED, OTHERS = "#4472b8", "#9db9e0", "#b9bec9"
SECTIONS = (
    "images",
    "texts",
    "zero-shot",
    "embedding files",
    "growth",
    "tokenization",
    "preprocessing",
    "loading",
    "imports",
    "evaluation",
    "search",
    "training",
    "runtime images",
    "runtime texts",
)
ORDER = {section: place for place, section in enumerate(SECTIONS)}
NOT_DRAWN = (
    *("growth", "evaluation", "imports", "search", "runtime images", "runtime texts"),
    *("batch 1", "cold", "1 thread"),
)

# the chart in README: a label, and the section and case of its rows
SUMMARY = (
    ("100 images, 1,000 labels", "zero-shot", "ViT-B/32, 100 images x 1000 labels"),
    ("token ids, 10,000 captions", "tokenization", "captions, warm"),
    ("short prompts", "texts", "ViT-B/32, short prompts"),
    ("load a .pt, ViT-B/32", "loading", "ViT-B/32"),
    ("pixels, 640x480", "preprocessing", "640x480, 2 threads"),
    ("images, RN50", "images", "RN50, batch 16"),
    ("images, ViT-B/32", "images", "ViT-B/32, batch 16"),
)
NOT_A_PEER = ("image encoding alone",)


def print_tables(rows: list[Row], console: Console) -> None:
    for section, members in groupby(rows, lambda row: row.section):
        table = Table("case", "by", title=section, box=SIMPLE_HEAD, title_justify="left")
        for column in ("seconds", "per second", "x baseline", "of peak", ""):
            table.add_column(column, justify="right")
        for case, group in groupby(members, lambda row: row.case):
            for number, row in enumerate(group):
                share = "" if row.share is None else f"{row.share:.0%}"
                cells = (f"{row.seconds:.3g}", f"{row.per_second:,.1f}", f"{row.ratio:.2f}", share, row.note)
                table.add_row("" if number else case, row.peer, *cells)
            table.add_section()
        console.print(table)


def write_json(rows: list[Row], machine: str, versions: dict[str, str], file: Path) -> None:
    content = {"machine": machine, "versions": versions, "rows": [asdict(row) for row in rows]}
    file.write_text(json.dumps(content, indent=1) + "\n")


def rows_once(file: Path, settings: dict[str, Any], measure: Callable[[], list[Row]]) -> list[Row]:
    """Return the rows that `file` holds if they were measured with these settings; else measure them, and write it."""
    if file.exists():
        content = json.loads(file.read_text())
        if content["settings"] == settings:
            return [Row(**row) for row in content["rows"]]
    rows = measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"settings": settings, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return rows


def draw(rows: Iterable[Row], machine: str, file: Path) -> None:
    """One bar per row, as fast as the baseline at 1, a panel per section; NOT_DRAWN is left to the table."""
    drawn = [row for row in rows if row.section not in NOT_DRAWN and not row.case.endswith(NOT_DRAWN)]
    sections = [(section, list(members)) for section, members in groupby(drawn, lambda row: row.section)]
    if not sections:
        return
    heights = [len(members) + 2 for _, members in sections]
    size = (9, 1 + sum(heights) * 0.2)
    figure, axes = plt.subplots(
        len(sections), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
    )
    for (section, members), axis in zip(sections, axes[:, 0], strict=True):
        names = [f"{row.case}: {row.peer}" for row in members]
        colors = [OURS if row.peer.startswith("hf_clip") else OTHERS for row in members]
        bars = axis.barh(range(len(members)), [row.ratio for row in members], color=colors)
        axis.bar_label(bars, [f"{row.ratio:.2f}" for row in members], padding=3, fontsize=7)
        axis.set_yticks(range(len(members)), names, fontsize=7)
        axis.set_ylim(len(members) - 0.4, -0.6)
        axis.axvline(1, color="#555555", linewidth=0.8)
        if max(row.ratio for row in members) > 10:
            axis.set_xscale("log")
        axis.set_title(section, loc="left", fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Times as fast as the baseline, which is at 1\n{machine}", fontsize=9)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def summarize(rows: Iterable[Row]) -> list[tuple[str, str, float, float | None]]:
    """Compare the exact and the optimized rows with the fastest of the others, which is at 1.

    Returns:
        For each case of SUMMARY that was measured: its label, the fastest other's name, and how many times as fast
        hf_clip is, exact and (None if it was not measured) optimized.
    """
    found = []
    for label, section, case in SUMMARY:
        members = [row for row in rows if (row.section, row.case) == (section, case)]
        others = [row for row in members if not row.peer.startswith("hf_clip") and row.peer not in NOT_A_PEER]
        ours = [row for row in members if row.peer.startswith("hf_clip") and "known" not in row.peer]
        if not others or not ours:
            continue
        best = min(others, key=lambda row: row.seconds)
        optimized = [row.seconds for row in ours if "optimized" in row.peer and "compiled" not in row.peer]
        exact = next(row.seconds for row in ours if "optimized" not in row.peer)
        found.append((label, best.peer, best.seconds / exact, best.seconds / min(optimized) if optimized else None))
    return found


def draw_summary(rows: list[Row], machine: str, file: Path) -> None:
    """Draw the chart of README."""
    cases = summarize(rows)
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.48 * len(cases)), layout="constrained")
    for place, (label, other, exact, optimized) in enumerate(cases):
        values = [(exact, OURS)] if optimized is None else [(exact, OURS), (optimized, OPTIMIZED)]
        for number, (value, color) in enumerate(values):
            height = 0.7 / len(values)
            bar = axis.barh(place + (number - (len(values) - 1) / 2) * height, value, height * 0.9, color=color)
            axis.bar_label(bar, [f"{value:.3g}x"], padding=3, fontsize=8)
        axis.text(-0.01, place, f"{label}\n", transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=9)
        beside = f"\nbeside {other}"
        axis.text(-0.01, place, beside, transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=7)
    axis.set_yticks([])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axis.minorticks_off()
    axis.axvline(1, color="#555555", linewidth=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (OURS, OPTIMIZED)]
    axis.legend(handles, ["hf_clip, exact", "hf_clip, optimized"], loc="lower right", fontsize=8, frameon=False)
    axis.set_title(f"times as fast as the fastest other library ({machine})", fontsize=9, loc="left")
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main(
    results: Annotated[list[Path], typer.Argument(help="What `python -m benchmarks` wrote, on one machine.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for results.json, results.png and summary.png.")
    ],
) -> None:
    """Put the results of several runs into one file, a chart of all rows and the chart of README.

    Example: python -m benchmarks.report build/a/results.json build/b/results.json --output benchmarks
    """
    contents = [json.loads(file.read_text()) for file in results]
    rows = sorted((Row(**row) for content in contents for row in content["rows"]), key=lambda row: ORDER[row.section])
    machine, versions = contents[0]["machine"], contents[0]["versions"]
    if any((content["machine"], content["versions"]) != (machine, versions) for content in contents):
        raise typer.BadParameter("these results are from different machines or packages")
    output.mkdir(parents=True, exist_ok=True)
    write_json(rows, machine, versions, output / "results.json")
    draw(rows, machine, output / "results.png")
    draw_summary(rows, machine, output / "summary.png")


if __name__ == "__main__":
    typer.run(main)
