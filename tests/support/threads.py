"""Objects that threads share: calls from many at once give what one after the other gives; the threads of children."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

THREADS = 8
ROUNDS = 12


def assert_threads_agree(calls: Sequence[Callable[[], Any]], same: Callable[[Any, Any], bool]) -> None:
    """Make each of `calls` alone, then all of them from eight threads, over and over, and compare with `same`."""
    expected = [call() for call in calls]
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(calls[number % len(calls)]) for number in range(len(calls) * ROUNDS)]
        for number, future in enumerate(futures):
            place = number % len(calls)
            assert same(future.result(), expected[place]), f"call {place} differs when threads share the object"


def as_many_threads() -> dict[str, str]:
    """Return the environment of a child that computes in as many threads: another number can give other bits."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
