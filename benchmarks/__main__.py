"""`python -m benchmarks`: hf_clip beside the original, stock transformers and open_clip, with the same weights."""

import sys
from collections.abc import Callable
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from . import drop_in, evaluation, imports, load, preprocess, runtime, scale, search, tokenization, training, zero_shot
from .common import Row
from .encode import BATCHES, IMAGE_MODELS, encode
from .machine import describe, has_fast_bfloat16
from .report import draw, print_tables, write_json

PACKAGES = ("torch", "transformers", "open_clip_torch", "clip-anytorch", "Pillow", "hf_clip")


class Section(str, Enum):
    encode = "encode"
    zero_shot = "zero-shot"
    tokenization = "tokenization"
    preprocess = "preprocess"
    drop_in = "drop-in"
    load = "load"
    imports = "imports"
    evaluation = "evaluation"
    scale = "scale"
    search = "search"
    training = "training"
    runtime = "runtime"


def main(
    sections: Annotated[list[Section] | None, typer.Argument(help="All of them unless named.")] = None,
    models: Annotated[str, typer.Option(help="Architectures for `encode` and `training`.")] = ",".join(IMAGE_MODELS),
    batches: Annotated[str, typer.Option(help="Batch sizes for `encode`.")] = ",".join(map(str, BATCHES)),
    rounds: Annotated[int, typer.Option(help="Turns that each peer gets; medians are reported.")] = 5,
    compiled: Annotated[bool, typer.Option(help="Rows under torch.compile, which takes minutes to compile.")] = True,
    device: Annotated[str, typer.Option(help="Where `encode` and `zero-shot` compute.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results.json and results.png.")] = Path(
        "build/benchmarks"
    ),
) -> None:
    """Measure hf_clip beside the original, stock transformers and open_clip, all in one run, taking turns.

    Weights are random, the same in every peer. Prints ratios of medians, and writes results.json and results.png.

    Example: python -m benchmarks encode --models RN50 --rounds 9
    """
    place, sizes = torch.device(device), [int(batch) for batch in batches.split(",")]
    console = Console(width=max(120, Console().width))
    measure: dict[Section, Callable[[], list[Row]]] = {
        Section.encode: lambda: encode(models.split(","), sizes, rounds, place, compiled),
        Section.zero_shot: lambda: zero_shot.measure(rounds, place),
        Section.tokenization: lambda: tokenization.measure(rounds),
        Section.preprocess: lambda: preprocess.measure(rounds),
        Section.drop_in: lambda: drop_in.measure(rounds),
        Section.load: lambda: load.measure(rounds),
        Section.imports: lambda: imports.measure(rounds),
        Section.evaluation: evaluation.measure,
        Section.scale: lambda: scale.measure(rounds),
        Section.search: lambda: search.measure(rounds),
        Section.training: lambda: training.measure(rounds, place, models.split(",")),
        Section.runtime: lambda: runtime.measure(rounds),
    }
    console.print(describe(place))
    if not has_fast_bfloat16(place):
        console.print("no bfloat16 hardware here: those rows are left out")
    output.mkdir(parents=True, exist_ok=True)
    versions = {"python": sys.version.split()[0], **{package: version(package) for package in PACKAGES}}
    rows: list[Row] = []
    for section in sections or list(Section):
        found = measure[section]()
        print_tables(found, console)
        rows += found
        write_json(rows, describe(place), versions, output / "results.json")
        draw(rows, describe(place), output / "results.png")
    console.print(f"wrote {output / 'results.json'} and {output / 'results.png'}")


if __name__ == "__main__":
    typer.run(main)
