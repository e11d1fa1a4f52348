"""`hf-clip embed` into a directory: how seconds and memory grow with images, and what Ray adds.

`python -m benchmarks.growth` prints the table. Each run is a command in a process of its own. Its peak of memory is
that of the command alone, which on Ray is the driver; a second run finds nothing new.
"""

import gc
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from examples.train_shapes import CHECKPOINTS
from hf_clip.openai.convert import Layout, convert

from .export import write_random
from .scale import draw_photos

DRAWN = 1000  # further images are links to these
# a command's peak begins with that of the process that starts it, so a small one does
MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def photos(folder: Path, count: int) -> Path:
    """Fill a folder with JPEGs, and return it."""
    drawn = folder / "drawn"
    if not drawn.exists():
        draw_photos(drawn, DRAWN)
    files, made = sorted(drawn.iterdir()), folder / f"{count}"
    made.mkdir()
    for number in range(count):
        os.link(files[number % DRAWN], made / f"{number:06d}.jpg")
    return made


@contextmanager
def cluster(engine: str) -> Iterator[list[str]]:
    """Give the options for an engine: local, ray, or NxC, which starts a cluster of N nodes of C cores."""
    if not (shape := re.fullmatch(r"(\d+)x(\d+)", engine)):
        yield [] if engine == "local" else ["--engine", engine]
        return
    from ray.cluster_utils import Cluster

    nodes, cores = map(int, shape.groups())
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False})
    for _ in range(nodes - 1):
        started.add_node(num_cpus=cores)
    started.wait_for_nodes()
    try:
        yield ["--engine", "ray", "--address", started.address]
    finally:
        started.shutdown()


def timed_command(arguments: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak MiB of one `hf-clip`."""
    command = [sys.executable, "-c", MEASURED, sys.executable, "-m", "hf_clip", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"hf-clip {' '.join(arguments)} ended with status {done.returncode}")
    return time.perf_counter() - start, int(done.stdout) / 1024


def main(
    engines: Annotated[str, typer.Option(help="local, ray, or NxC: a cluster of N nodes of C cores each.")] = "local",
    counts: Annotated[str, typer.Option(help="Numbers of images.")] = "1000,10000,100000",
    model: Annotated[str, typer.Option(help="An architecture with random weights, or tiny.")] = "tiny",
) -> None:
    """Embed more and more JPEGs with each engine; print seconds, images a second and the command's peak of memory.

    Example: python -m benchmarks.growth --engines local,ray --counts 1000 --model RN50
    """
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # for workers
    table = Table("engine", box=SIMPLE_HEAD)
    for column in ("images", "seconds", "images/s", "peak MiB", "nothing new: seconds", "peak MiB"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if model == "tiny":
            convert(str(CHECKPOINTS["vit"]), folder / "clip", Layout.transformers, report=lambda _: None)
        else:
            write_random(model, folder / "clip")
        gc.collect()
        cases = [(int(count), engine) for count in counts.split(",") for engine in engines.split(",")]
        for count, engine in tqdm(cases, desc="runs"):
            images = folder / str(count)
            if not images.exists():
                photos(folder, count)
            output = folder / f"{engine}-{count}"
            with cluster(engine) as options:
                command = ["embed", str(images), "-o", str(output), "-m", str(folder / "clip"), *options]
                seconds, peak = timed_command(command)
                seconds_again, peak_again = timed_command(command)
            cells = (seconds, count / seconds, peak, seconds_again, peak_again)
            table.add_row(engine, f"{count:,}", *(f"{cell:,.1f}" for cell in cells))
    Console(width=110).print(f"{model}, {torch.get_num_threads()} threads", table)


if __name__ == "__main__":
    typer.run(main)
