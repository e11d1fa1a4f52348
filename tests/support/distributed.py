"""Two processes on this machine that train together; what they do lies in modules that they can import."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_processes(function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` on two processes of one gloo group, and return what each of them returned."""
    with tempfile.TemporaryDirectory() as meeting:
        mp.spawn(_member, (f"file://{meeting}/store", folder, function, arguments), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _member(rank: int, store: str, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        torch.save(function(*arguments), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
