"""`hf-clip serve` under load: throughput, latency and memory, beside the same work offline.

`python -m benchmarks.serving` prints the tables. The server and the load generator, locust, are processes of their
own on this machine, so they share its cores; offline is one process with all of them.
"""

import json
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
from urllib.request import urlopen

import psutil
import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from examples.train_shapes import CHECKPOINTS
from hf_clip import embed_images, embed_texts, load_clip
from hf_clip.data.images import ImageRef
from hf_clip.openai.convert import convert

from .export import write_random

HERE = Path(__file__).parent
COLUMNS = ("model", "kind", "clients", "per second", "of offline", "CPU ms each", "p50 ms", "p99 ms", "failed")
COMMAND = [sys.executable, "-c", "import hf_clip_command; hf_clip_command.main()", "serve"]


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[str, float, int]]:
    """Start a server, and yield its address, the seconds until it was ready, and its process."""
    start = time.perf_counter()
    with subprocess.Popen(
        [*COMMAND, str(model), "--port", "0", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield line.split(" answers at ")[1].strip(), time.perf_counter() - start, process.pid
        process.terminate()


def load(address: str, process: int, kind: str, clients: int, seconds: float) -> dict[str, float]:
    """Run clients for a time; return requests a second, p50 and p99 in ms, failures, and the server's CPU time."""
    before = cpu_seconds(process)
    command = [
        sys.executable, "-m", "locust", "-f", HERE / "serving_users.py", "--headless", "--host", address,
        "-u", clients, "-r", clients, "-t", f"{seconds:g}s", "--json", "--loglevel", "ERROR",
    ]  # fmt: skip
    environment = os.environ | {"SERVING_KIND": kind, "PYTHONPATH": ""}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    [stats] = json.loads(done.stdout)
    times = sorted((float(ms), count) for ms, count in stats["response_times"].items())
    lasted = stats["last_request_timestamp"] - stats["start_time"]
    return {
        "rate": stats["num_requests"] / lasted,
        "p50": percentile(times, 0.5),
        "p99": percentile(times, 0.99),
        "failures": stats["num_failures"],
        "count": stats["num_requests"],
        "cpu": 1e3 * (cpu_seconds(process) - before) / stats["num_requests"],
    }


def percentile(times: list[tuple[float, int]], share: float) -> float:
    """Return a percentile of times with counts."""
    total, seen = sum(count for _, count in times), 0
    for ms, count in times:
        seen += count
        if seen >= share * total:
            return ms
    return times[-1][0]


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process so far, of all its threads: other programs do not lengthen it."""
    times = psutil.Process(process).cpu_times()
    return times.user + times.system


def memory_mib(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[0]) / 2**10


def offline(model: Path, seconds: float) -> dict[str, tuple[float, float]]:
    """Embed the same JPEGs, their pixels and texts without a server; return items a second, and CPU ms of each."""
    sys.modules.setdefault("locust", _Locust())  # type: ignore[arg-type]
    from .serving_users import DRAWN, draw_jpegs

    clip, processor = load_clip(model)
    files = [ImageRef.of(content, "a JPEG") for content in draw_jpegs(DRAWN)]
    pixels = torch.cat([processor(images=[file.open()], return_tensors="pt")["pixel_values"] for file in files])
    texts = [f"a photo of thing number {number}" for number in range(DRAWN)]
    ways = {
        "pixels": lambda: embed_images(clip, processor, list(pixels.split(32))),
        "image": lambda: embed_images(clip, processor, files, batch_size=32),
        "one image": lambda: embed_images(clip, processor, files[:1]),
        "text": lambda: embed_texts(clip, processor, texts),
        "one text": lambda: embed_texts(clip, processor, texts[:1]),
    }
    rates: dict[str, tuple[float, float]] = {}
    for name, way in ways.items():
        way()
        start, used, calls = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            way()
            calls += 1
        items = calls * (1 if name.startswith("one") else DRAWN)
        rates[name] = items / (time.perf_counter() - start), 1e3 * (time.process_time() - used) / items
    return rates


class _Locust:
    """Replace locust, which would patch sockets, where only the drawings of its users are needed."""

    FastHttpUser = object

    def __getattr__(self, name: str) -> object:
        return lambda value: value


def main(
    models: Annotated[str, typer.Option(help="shapes-vit, or architectures with random weights.")] = "shapes-vit",
    clients: Annotated[str, typer.Option(help="Numbers of clients.")] = "1,8,32",
    kinds: Annotated[str, typer.Option(help="image, text.")] = "image,text",
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement.")] = 5,
    requests: Annotated[int, typer.Option(help="Requests after which the memory is read again; 0 leaves it.")] = 0,
    max_batch: Annotated[int, typer.Option(help="The option of the server.")] = 32,
) -> None:
    """Measure the server on this machine.

    Example: python -m benchmarks.serving --models shapes-vit,ViT-B/32 --seconds 10
    """
    console = Console(width=120)
    table = Table(*COLUMNS, box=SIMPLE_HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(models.split(",")):
            path = Path(folder) / str(number)
            if name == "shapes-vit":
                convert(str(CHECKPOINTS["vit"]), path, report=lambda _: None)
            else:
                write_random(name, path)
            rates = offline(path, seconds)
            for way in ("pixels", "image", "one image", "text", "one text"):
                rate, cpu = rates[way]
                table.add_row(name, way, "offline", f"{rate:,.1f}", "", f"{cpu:.1f}", f"{1e3 / rate:.1f}", "", "")
            with serving(path, "--max-batch", str(max_batch)) as (address, ready, process):
                urlopen(f"{address}/readyz").close()
                before = memory_mib(process)
                for kind in kinds.split(","):
                    for count in map(int, clients.split(",")):
                        found = load(address, process, kind, count, seconds)
                        share = found["rate"] / rates[kind if count > 1 else f"one {kind}"][0]
                        numbers = (found["cpu"], found["p50"], found["p99"])
                        cells = [f"{found['rate']:,.1f}", f"{share:.2f}", *(f"{number:.1f}" for number in numbers)]
                        table.add_row(name, kind, str(count), *cells, f"{found['failures']:.0f}")
                after, sent = memory_mib(process), 0.0
                while sent < requests:
                    sent += load(address, process, kinds.split(",")[0], 32, 30)["count"]
                console.print(
                    f"{name}: ready after {ready:.1f} s; memory {before:.0f} MiB at first, {after:.0f} MiB after the "
                    f"table, {memory_mib(process):.0f} MiB after {sent:,.0f} requests more"
                )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
