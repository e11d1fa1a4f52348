"""Time and peak memory of loading a model on the CPU beside the original, each time in a fresh process."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import psutil
from tqdm import tqdm

from .common import Row, rows_of

MODELS = ("ViT-B/32", "RN50x16")
WAYS = ("original, .pt", "hf_clip, .pt", "hf_clip, folder")


def measure(rounds: int, models: tuple[str, ...] = MODELS) -> list[Row]:
    """Seconds of `load` by each of WAYS; noted is the peak memory, and as a part of the original's."""
    rows = []
    for name in models:
        with tempfile.TemporaryDirectory() as directory:
            paths = write(name, Path(directory))
            turns = [
                {way: in_fresh_process(way, path) for way, path in zip(WAYS, paths, strict=True)}
                for _ in tqdm(range(rounds), desc=f"load {name}", leave=False)
            ]
        seconds, peak = ({way: median(turn[way][i] for turn in turns) for way in WAYS} for i in (0, 1))
        notes = {way: f"{peak[way]:,.0f} MiB, {peak[way] / peak[WAYS[0]]:.2f}x" for way in WAYS}
        rows += rows_of("loading", name, seconds, 1, baseline=WAYS[0], notes=notes)
    return rows


def write(name: str, directory: Path) -> tuple[Path, Path, Path]:
    """An archive like the published ones, twice, and its converted folder."""
    # here, so that a measured process imports only what it measures
    from hf_clip.openai.convert import convert

    from .originals import original_model, save_archive

    archive = save_archive(original_model(name), directory / "model.pt", half_graph=False)
    convert(str(archive), directory / "converted", report=lambda _: None)
    return archive, archive, directory / "converted"


def in_fresh_process(way: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.load", way, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def load_once(way: str, path: str) -> tuple[float, float]:
    """Seconds of `load`, and MiB by which private memory grew at its highest; mapped pages of the file not counted."""
    if way == WAYS[0]:
        import clip
    else:
        import hf_clip.openai as clip
    process, done, peak = psutil.Process(), threading.Event(), 0

    def private() -> int:
        usage = process.memory_info()
        return usage.rss - usage.shared

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, private())

    before = private()
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = clip.load(path, device="cpu")
    seconds = time.perf_counter() - start
    peak = max(peak, private())
    done.set()
    watcher.join()
    del model
    return seconds, (peak - before) / 2**20


if __name__ == "__main__":
    print(json.dumps(load_once(*sys.argv[1:])))
