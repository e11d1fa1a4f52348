"""Time and peak memory of loading a model on the CPU beside the original: `python -m benchmarks.load`."""

import argparse
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

WAYS = ("original from .pt", "hf_clip from .pt", "hf_clip from folder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["ViT-B/32", "RN50x16"], help="architectures, random weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    print("| model | loaded by | seconds | peak MiB | time / original | memory / original |")
    print("| :--- | :--- | ---: | ---: | ---: | ---: |")
    for name in args.models:
        with tempfile.TemporaryDirectory() as directory:
            paths = write(name, Path(directory))
            rounds = [
                {way: in_fresh_process(way, path) for way, path in zip(WAYS, paths, strict=True)}
                for _ in tqdm(range(args.rounds), desc=name)
            ]
        results = {way: [median(values) for values in zip(*(r[way] for r in rounds), strict=True)] for way in WAYS}
        for way, (seconds, peak) in results.items():
            times, memory = seconds / results[WAYS[0]][0], peak / results[WAYS[0]][1]
            print(f"| {name} | {way} | {seconds:.2f} | {peak:.0f} | {times:.2f} | {memory:.2f} |")


def write(name: str, directory: Path) -> tuple[Path, Path, Path]:
    """An archive like the published ones, twice, and its converted folder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers import original_model, save_archive

    from conversion.convert import convert

    archive = save_archive(original_model(name), directory / "model.pt", half_graph=False)
    convert(str(archive), directory / "converted", report=lambda _: None)
    return archive, archive, directory / "converted"


def in_fresh_process(way: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.load", "--measure", way, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(way: str, path: str) -> tuple[float, float]:
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
    main()
