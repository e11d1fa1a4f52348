"""The number of threads that share a computation on the CPU."""

import os
import sys


def thread_count() -> int:
    """Return PyTorch's number of threads where it is loaded, else OMP_NUM_THREADS, else the number of usable cores."""
    if (torch := sys.modules.get("torch")) is not None:
        return torch.get_num_threads()
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


__all__ = ["thread_count"]
