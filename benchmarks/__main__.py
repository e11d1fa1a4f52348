"""`python -m benchmarks`: hf_clip beside the original, stock transformers and open_clip, with the same weights."""

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
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
from .report import draw, print_tables, rows_once, write_json

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

    Weights are random, the same in every peer. Prints ratios of medians, and writes results.json and results.png. A run
    that was stopped goes on: what a section, or a model in it, gave with the same options is kept in the folder parts.

    Example: python -m benchmarks encode --models RN50 --rounds 9
    """
    place, sizes = torch.device(device), [int(batch) for batch in batches.split(",")]
    console = Console(width=max(120, Console().width))
    names = models.split(",")
    measure: dict[Section, Callable[[], list[Row]]] = {
        Section.zero_shot: lambda: zero_shot.measure(rounds, place),
        Section.tokenization: lambda: tokenization.measure(rounds),
        Section.preprocess: lambda: preprocess.measure(rounds),
        Section.drop_in: lambda: drop_in.measure(rounds),
        Section.imports: lambda: imports.measure(rounds),
        Section.evaluation: evaluation.measure,
        Section.scale: lambda: scale.measure(rounds),
        Section.search: lambda: search.measure(rounds),
    }
    by_model: dict[Section, tuple[Sequence[str], Callable[[str], list[Row]]]] = {
        Section.encode: (names, lambda name: encode([name], sizes, rounds, place, compiled)),
        Section.load: (load.MODELS, lambda name: load.measure(rounds, (name,))),
        Section.training: (names, lambda name: training.measure(rounds, place, [name])),
        Section.runtime: (runtime.MODELS, lambda name: runtime.measure(rounds, (name,))),
    }
    console.print(describe(place))
    if not has_fast_bfloat16(place):
        console.print("no bfloat16 hardware here: those rows are left out")
    output.mkdir(parents=True, exist_ok=True)
    versions = {"python": sys.version.split()[0], **{package: version(package) for package in PACKAGES}}
    rows: list[Row] = []
    settings = {
        "machine": describe(place),
        "versions": versions,
        "rounds": rounds,
        "batches": sizes,
        "compiled": compiled,
        "device": device,
    }
    for section in sections or list(Section):
        of_models, one = by_model.get(section, ((), None))
        units = {f"{section.value} {name}": partial(one, name) for name in of_models} if one else {}
        found = []
        for unit, function in (units or {section.value: measure[section]}).items():
            found += rows_once(output / "parts" / f"{unit.replace('/', '-')}.json", settings, function)
        print_tables(found, console)
        rows += found
        write_json(rows, describe(place), versions, output / "results.json")
        draw(rows, describe(place), output / "results.png")
    console.print(f"wrote {output / 'results.json'} and {output / 'results.png'}")


if __name__ == "__main__":
    typer.run(main)
