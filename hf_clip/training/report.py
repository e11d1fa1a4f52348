"""What a training leaves beside the weights: a table of numbers, and a model card."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.files import replacing

REPORT = "training.json"
UNWANTED = ("runtime", "per_second", "preparation_time", "epoch")
CARD = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
{known}tags:
- clip
- hf_clip
---

# {name}

{start}, fine-tuned on {data} with [hf_clip](https://github.com/hf-clip/hf_clip).

{table}

| setting | value |
|---|---|
{settings}
"""


def kept(metrics: Mapping[str, float]) -> dict[str, float]:
    """Select the numbers of an evaluation that say how good a model is."""
    return {
        name.removeprefix("eval_"): value
        for name, value in metrics.items()
        if not any(part in name for part in UNWANTED)
    }


def changes_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Write a table in Markdown of the numbers before and after training."""
    rows = [
        f"| {name} | {before.get(name, math.nan):.4g} | {value:.4g} | {value - before.get(name, math.nan):+.4g} |"
        for name, value in after.items()
    ]
    return "\n".join(["| metric | before | after | change |", "|---|---|---|---|", *rows])


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the numbers and settings of a training to its folder."""
    with replacing(folder / REPORT) as work:
        work.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def read_report(folder: Path) -> dict[str, Any]:
    """Read what `write_report` wrote, or nothing."""
    path = folder / REPORT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_card(folder: Path, base: str, data: str, report: Mapping[str, Any]) -> None:
    """Write a model card that says what was trained on what, how, and to which effect.

    A base that is a folder is named in words alone: as `base_model` the Hub takes its own ids only.
    """
    local = Path(base).is_dir()
    settings = "\n".join(f"| {name} | {value} |" for name, value in report["settings"].items())
    text = CARD.format(
        known="" if local else f"base_model: {base}\n",
        start=Path(base).absolute().name if local else base,
        name=folder.absolute().name,
        data=data,
        table=changes_table(report.get("before", {}), report.get("after", {})) if report.get("after") else "",
        settings=settings,
    )
    with replacing(folder / "README.md") as work:
        work.write_text(text, encoding="utf-8")


__all__ = ["REPORT", "changes_table", "kept", "read_report", "write_card", "write_report"]
