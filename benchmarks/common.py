"""Shared by all benchmarks: peers that take turns, and the rows of their results."""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from tqdm import tqdm

ORIGINAL = "original"
SECONDS = 60
WATCHED = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen([sys.executable, "-W", "ignore", *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss / 2**10, status]))
"""


@dataclass(frozen=True)
class Row:
    """One peer in one case. `seconds` is the median of a call, `items` the number that a call processes.

    `ratio` is the original's time over this one's (of the case's baseline where the original has no such row): more
    than 1 is faster. `share` is the part of the machine's own peak that it reaches, where that is known.
    """

    section: str
    case: str
    peer: str
    seconds: float
    items: int
    ratio: float
    share: float | None = None
    note: str = ""

    @property
    def per_second(self) -> float:
        return self.items / self.seconds


def timed(function: Callable, *args) -> float:
    """Seconds of one call, until a GPU has done its part."""
    start = time.perf_counter()
    function(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_fresh_process(*arguments: object) -> tuple[float, float]:
    """Run Python with these arguments, and return the seconds and the peak MiB of its process alone."""
    # a small process in between: the peak of a child begins at that of the process that forked it
    command = [sys.executable, "-c", WATCHED, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"})
    seconds, peak, status = json.loads(done.stdout)
    if status:
        raise RuntimeError(f"python {' '.join(command[3:])} failed: {done.stderr}")
    return seconds, peak


def peak_mib() -> float:
    """Return this process's own peak of memory in MiB so far; `ru_maxrss` begins at its parent's."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 2**10


def take_turns(
    ways: dict[str, Callable[[], object]], rounds: int, label: str, pause: float = 0.0, limit: float = SECONDS
) -> dict[str, float]:
    """The median seconds of each way. Every round runs all of them, in random order; one round warms up.

    No round begins after `limit` seconds, save the first two. `pause` gives PyTorch's threads, which go on spinning
    after a call, the seconds to fall asleep before the next.
    """
    # in a fixed order each would always follow the same one, and find the caches and the clock as that left them
    rng, seconds, begin = random.Random(0), {name: [] for name in ways}, time.perf_counter()
    for turn in tqdm(range(rounds + 1), desc=label, leave=False):
        if turn > 2 and time.perf_counter() - begin > limit:
            break
        for name in rng.sample(list(ways), len(ways)):
            time.sleep(pause)
            elapsed = timed(ways[name])
            if turn > 0:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rows_of(
    section: str,
    case: str,
    seconds: dict[str, float],
    items: int,
    baseline: str = ORIGINAL,
    flops: float | None = None,
    peak: float | None = None,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> list[Row]:
    """`seconds` as rows; `flops` of one call and the machine's `peak`, in FLOP/s, give the share."""
    return [
        Row(
            section,
            case,
            peer,
            median,
            items,
            seconds[baseline] / median,
            flops / median / peak if flops and peak else None,
            notes.get(peer, ""),
        )
        for peer, median in seconds.items()
    ]
