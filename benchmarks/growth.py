"""`hf-clip embed` into a directory: growth of seconds and memory with images, and the cost of Ray.

`python -m benchmarks.growth` prints the table. Each run is a command in a process of its own. Its peak of memory is
that of the command alone, which on Ray is the driver; a second run finds nothing new.
"""

import gc
import os
import re
import tempfile
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

from .common import in_fresh_process
from .export import write_random
from .scale import draw_photos

DRAWN = 1000  # further images are links to these
STORE = 2 * 2**30  # bytes of the object stores of a cluster's nodes together: a test cluster has very little by itself


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
    """Return the options of an engine: local, ray, or NxC, which starts a cluster of N nodes of C cores."""
    if not (shape := re.fullmatch(r"(\d+)x(\d+)", engine)):
        yield [] if engine == "local" else ["--engine", engine]
        return
    from ray.cluster_utils import Cluster

    nodes, cores = map(int, shape.groups())
    node = {"num_cpus": cores, "object_store_memory": STORE // nodes}
    started = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(nodes - 1):
        started.add_node(**node)
    started.wait_for_nodes()
    try:
        yield ["--engine", "ray", "--address", started.address]
    finally:
        started.shutdown()


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
                command = ["-m", "hf_clip", "embed", images, "-o", output, "-m", folder / "clip", *options]
                seconds, peak = in_fresh_process(*command)
                seconds_again, peak_again = in_fresh_process(*command)
            cells = (seconds, count / seconds, peak, seconds_again, peak_again)
            table.add_row(engine, f"{count:,}", *(f"{cell:,.1f}" for cell in cells))
    Console(width=110).print(f"{model}, {torch.get_num_threads()} threads", table)


if __name__ == "__main__":
    typer.run(main)
