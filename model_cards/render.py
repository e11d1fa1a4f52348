"""Render `template.md` with `checkpoints.json` to nine model cards."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_clip import __version__
from hf_clip.openai.published import CHECKPOINTS, LICENSE

FOLDER = Path(__file__).parent
PIPELINE = "zero-shot-image-classification"


def load_data() -> dict:
    """Read `checkpoints.json`: facts about each checkpoint, and the source of each number."""
    return json.loads((FOLDER / "checkpoints.json").read_text(encoding="utf-8"))


def render_cards(data: dict) -> dict[str, str]:
    """Return the text of each card by file name."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER, encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template("template.md")
    cards = {}
    for name, checkpoint in CHECKPOINTS.items():
        row = data["checkpoints"][name]
        metadata = ModelCardData(
            language="en",
            **LICENSE,
            library_name="transformers",
            pipeline_tag=PIPELINE,
            tags=["clip", "vision", "hf_clip", "custom_code"],
            model_name=checkpoint.repo_name,
            eval_results=list(published_results(row, data)),
        )
        cards[f"{checkpoint.repo_name}.md"] = template.render(
            data, metadata=metadata.to_yaml(), checkpoint=checkpoint, row=row, version=__version__
        )
    return cards


def published_results(row: dict, data: dict) -> Iterator[EvalResult]:
    """Yield the results that others published for a checkpoint, as fractions of one."""

    def result(source: str, dataset: str, metric: str, value: float, config: str | None = None) -> EvalResult:
        return EvalResult(
            task_type=data["datasets"][dataset].get("task", PIPELINE),
            dataset_name=dataset,
            # the data set's id on the Hub, where it is there
            dataset_type=data["datasets"][dataset].get("hub") or re.sub(r"[^a-z0-9]+", "-", dataset.lower()),
            dataset_config=config,
            metric_type=metric,
            metric_name=data["metrics"][metric],
            metric_value=value,
            source_name=data["sources"][source]["name"],
            source_url=data["sources"][source]["url"],
        )

    for dataset, value in row["zero_shot"].items():
        yield result("zero_shot", dataset, data["datasets"][dataset]["metric"], value)
    for dataset, directions in row["retrieval"].items():
        for direction, recalls in directions.items():
            for k, value in zip((1, 5, 10), recalls, strict=True):
                yield result("retrieval", dataset, f"recall_at_{k}", value, f"{direction} retrieval")
    for metric, percent in zip(("accuracy", "top_5_accuracy"), row["imagenet_v2"], strict=True):
        yield result("imagenet_v2", "ImageNet v2", metric, round(percent / 100, 4), "matched-frequency, float16")


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a card is not as rendered.")] = False,
) -> None:
    """Write the model cards beside this file."""
    cards = render_cards(load_data())
    found = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.glob("clip-*.md")}
    stale = sorted(name for name in cards.keys() | found.keys() if cards.get(name) != found.get(name))
    if check and stale:
        raise SystemExit(f"not as rendered: {', '.join(stale)}; run python -m model_cards.render")
    for name in stale:
        if name in cards:
            (FOLDER / name).write_text(cards[name], encoding="utf-8", newline="\n")
            typer.echo(f"wrote {name}")
        else:
            (FOLDER / name).unlink()
            typer.echo(f"removed {name}: no checkpoint has this name")


if __name__ == "__main__":
    typer.run(main)
