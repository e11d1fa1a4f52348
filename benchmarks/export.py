"""Every architecture on ONNX Runtime and OpenVINO: how far from PyTorch, how large, and the cost of the export.

`python -m benchmarks.export` prints the table and writes it to a file. Weights are random. Each tower is exported in a
fresh process, one at a time, so that its peak memory is its own; the error is the largest relative L2 distance of a row
from the exact model in float32, over batches of BATCHES images and texts, texts of LENGTHS tokens.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hf_clip import HFCLIPModel, export_clip, load_clip
from hf_clip.openai.convert import DType, Layout, to_repository

from .common import peak_mib
from .machine import describe
from .originals import ARCHITECTURES, original_model

NAMES = tuple(name for name in ARCHITECTURES if not name.startswith("tiny"))
RUNTIMES, TOWERS = ("onnx", "openvino"), ("vision", "text")
BATCHES, LENGTHS = (1, 2, 7), (3, 16, 77)


@dataclass(frozen=True)
class Export:
    """One part of an architecture on one runtime; `error` is relative."""

    architecture: str
    runtime: str
    part: str
    error: float
    mib: float
    seconds: float
    peak_mib: float


def write_random(name: str, folder: Path) -> Path:
    """Write a folder with random weights."""
    original = original_model(name)
    made = to_repository(original.state_dict(), Layout.hf_clip, DType.float32)
    del original
    model = HFCLIPModel(made.config)
    model.load_state_dict(made.tensors)
    model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    del made, model
    gc.collect()
    return folder


def in_fresh_process(folder: Path, runtime: str, part: str) -> dict[str, float]:
    """Export one part of a folder in a process of its own, and return the numbers of an Export."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.export", str(folder), runtime, part]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"the export of {folder} failed: {run.stderr.strip().splitlines()[-1]}")
    return json.loads(run.stdout.splitlines()[-1])


def export_once(folder: str, runtime: str, part: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as directory:
        start = time.perf_counter()
        output = Path(directory, "exported")
        report = export_clip(folder, output, runtime=runtime, parts=[part], report=lambda _: None)
        seconds = time.perf_counter() - start
        peak = peak_mib()
        (file,) = report["files"].values()
        error = file["relative_error_max"] if part == "joint" else error_of(folder, output, part)
    return {"error": error, "mib": file["bytes"] / 2**20, "seconds": seconds, "peak_mib": peak}


@torch.no_grad()
def error_of(source: str | Path, exported: Path, part: str) -> float:
    """Return the largest relative error of a tower over all batches and lengths."""
    model, (loaded, _) = HFCLIPModel.from_pretrained(source).eval(), load_clip(exported)
    encode, exact = (getattr(clip, f"encode_{'image' if part == 'vision' else 'text'}") for clip in (loaded, model))
    return max(relative(encode(values), exact(values)) for values in tower_inputs(model.config, part))


def tower_inputs(config, part: str) -> list[torch.Tensor]:
    """Make pixels in every batch, or token ids in every batch and length."""
    generator = torch.Generator().manual_seed(0)
    if part == "vision":
        size = config.vision_config.image_size
        return [torch.randn(batch, 3, size, size, generator=generator) for batch in BATCHES]
    made = []
    for batch, length in product(BATCHES, LENGTHS):
        ids = torch.randint(1, 49000, (batch, length), generator=generator)
        ids[:, -1] = config.text_config.eos_token_id
        made.append(ids)
    return made


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest relative L2 distance between rows."""
    return ((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


def table(rows: list[Export]) -> Table:
    made = Table("architecture", "runtime", "tower", box=SIMPLE_HEAD)
    for column in ("relative error", "MiB", "seconds", "peak MiB"):
        made.add_column(column, justify="right")
    for row in rows:
        numbers = (f"{row.error:.1e}", f"{row.mib:,.0f}", f"{row.seconds:.0f}", f"{row.peak_mib:,.0f}")
        made.add_row(row.architecture, row.runtime, row.part, *numbers)
    return made


def main(
    models: Annotated[str, typer.Option(help="Architectures, with commas between.")] = ",".join(NAMES),
    parts: Annotated[str, typer.Option(help="Of vision, text and joint (ONNX only).")] = ",".join(TOWERS),
    output: Annotated[Path, typer.Option("--output", "-o", help="A .json; rows that it has are kept.")] = Path(
        "build/benchmarks/export.json"
    ),
) -> None:
    """Export architectures with random weights to both runtimes; print errors, sizes, seconds and peak memory.

    Example: python -m benchmarks.export --models RN50,ViT-B/32
    """
    rows = [Export(**row) for row in json.loads(output.read_text())["rows"]] if output.exists() else []
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in models.split(","):
        cases = [case for case in product(RUNTIMES, parts.split(",")) if case != ("openvino", "joint")]
        known = {(row.runtime, row.part) for row in rows if row.architecture == name}
        with tempfile.TemporaryDirectory(dir=output.parent) as directory:
            folder = Path(directory) / "model"
            for runtime, part in cases:
                if (runtime, part) in known:
                    continue
                if not folder.exists():
                    write_random(name, folder)
                rows.append(Export(name, runtime, part, **in_fresh_process(folder, runtime, part)))
                content = {"machine": describe(torch.device("cpu")), "rows": [asdict(row) for row in rows]}
                output.write_text(json.dumps(content, indent=1) + "\n")
    Console(width=100).print(table(rows))


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[2] in RUNTIMES:
        print(json.dumps(export_once(*sys.argv[1:])))
    else:
        typer.run(main)
