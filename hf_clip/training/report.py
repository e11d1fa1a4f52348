"""The report of a training run: training.json, a table of metrics, and the model card."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..openai.published import hub_relation, inherited_license, model_title
from ..utils.files import replacing

REPORT = "training.json"
UNWANTED = ("runtime", "per_second", "preparation_time", "epoch")
CARD = """---
library_name: {library}
pipeline_tag: zero-shot-image-classification
{license}{known}{metrics}tags:
- clip
- hf_clip
{tags}---

# {name}

{start}, fine-tuned on {data} with [hf_clip](https://github.com/hf-clip/hf_clip).

{usage}

{table}

| setting | value |
|---|---|
{settings}

{terms}
"""
MERGE_CARD = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
{license}{known}tags:
- clip
- hf_clip
- merge
---

# {name}

The weights of {tuned} ({share:g}) and {start} ({rest:g}), averaged with [hf_clip](https://github.com/hf-clip/hf_clip).

{usage}
{table}
{terms}
"""
USAGE = """```python
from hf_clip import ZeroShotClassifier

classifier = ZeroShotClassifier.from_pretrained("{name}", ["a cat", "a dog"])
print(classifier("photo.jpg"))
```"""
ADAPTER_USAGE = """This is a LoRA adapter. Merge it into its base model:

```sh
hf-clip merge {start} {name} --output merged
```"""


def kept(metrics: Mapping[str, float]) -> dict[str, float]:
    """Select the quality metrics of an evaluation, without times and epochs."""
    return {
        name.removeprefix("eval_"): value
        for name, value in metrics.items()
        if not any(part in name for part in UNWANTED)
    }


def changes_table(report: Mapping[str, Any]) -> str:
    """Return a Markdown table of metrics before and after training, below the sizes of their data sets."""
    before, after = report.get("before", {}), report["after"]
    sizes = [f"- {name}: {size}" for name, size in report.get("data", {}).items()]
    rows = [
        f"| {name} | {before.get(name, math.nan):.4g} | {value:.4g} | {value - before.get(name, math.nan):+.4g} |"
        for name, value in after.items()
    ]
    head = ["| metric | before | after | change |", "|---|---|---|---|"]
    return "\n".join([*sizes, *([""] if sizes else []), *head, *rows])


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the metrics and settings of a training run to its folder."""
    with replacing(folder / REPORT) as work:
        work.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report in a folder; return {} if there is none."""
    path = folder / REPORT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_card(folder: Path, base: str, data: str, report: Mapping[str, Any], license_id: str | None = None) -> None:
    """Write a model card with the base model, the data, the settings, and the metrics before and after.

    A base that is a local folder is named in the text alone, as the Hub's `base_model` takes Hub ids only.

    Args:
        folder: Where README.md goes.
        base: The model before training: a published name, a path or a Hub id.
        data: The name of the training data.
        report: What training.json holds.
        license_id: The license, such as mit; that of the base unless given.
    """
    adapter = report["settings"].get("train") == "lora"
    start, name = model_title(base), folder.absolute().name
    license_fields, terms = license_of([base], license_id)
    settings = "\n".join(f"| {setting} | {value} |" for setting, value in report["settings"].items())
    text = CARD.format(
        library="peft" if adapter else "transformers",
        license=license_fields,
        terms=terms,
        known=hub_relation([base], "adapter" if adapter else "finetune"),
        metrics=measured_metadata(report.get("after", {})),
        tags="- lora\n" if adapter else "",
        start=start,
        name=name,
        data=data,
        usage=(ADAPTER_USAGE if adapter else USAGE).format(start=start, name=name),
        table=changes_table(report) if report.get("after") else "",
        settings=settings,
    )
    with replacing(folder / "README.md") as work:
        work.write_text(text, encoding="utf-8")


def license_of(models: Sequence[str], given: str | None) -> tuple[str, str]:
    """Return the license of a model made from `models`: metadata for its card, and a sentence for the text.

    It is the given one, else the one that all of them have. Nothing is guessed.
    """
    if given is not None:
        return f"license: {json.dumps(given)}\n", f"The license is {given}."
    metadata = [inherited_license(model) for model in models]
    if len({fields for fields, _ in metadata}) == 1:
        return metadata[0]
    return "", "The licenses of both models differ, or one is not known: add that of the merge to the metadata above."


def measured_metadata(metrics: Mapping[str, float]) -> str:
    """Return a card's metadata on the kinds of metrics, by the Hub's names; "" without any."""
    kinds = {"acc1": "accuracy", "recall@": "recall", "mean_average_precision": "mean_average_precision"}
    found = [kind for part, kind in kinds.items() if any(part in name for name in metrics)]
    return "".join(["metrics:\n", *(f"- {kind}\n" for kind in found)]) if found else ""


def write_merge_card(
    folder: Path, name: str, base: str, tuned: str, share: float, table: str = "", license_id: str | None = None
) -> None:
    """Write the model card of `name`, whose weights are `share` of `tuned`'s and the rest of `base`'s.

    Args:
        folder: Where README.md goes.
        name: The title.
        base: The model that `tuned` started from: a published name, a path or a Hub id.
        tuned: The fine-tune, or the adapter.
        share: Between 0 and 1.
        table: What was measured, in Markdown.
        license_id: The license, such as mit; that of both models unless given.
    """
    license_fields, terms = license_of([base, tuned], license_id)
    text = MERGE_CARD.format(
        license=license_fields,
        terms=terms,
        table=f"\n{table}\n" if table else "",
        known=hub_relation([base, tuned], "merge"),
        name=name,
        start=model_title(base),
        tuned=model_title(tuned),
        share=share,
        rest=round(1 - share, 9),
        usage=USAGE.format(name=name),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


__all__ = ["REPORT", "changes_table", "kept", "read_report", "write_card", "write_merge_card", "write_report"]
