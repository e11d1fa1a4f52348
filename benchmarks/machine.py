"""The machine's name, and the fastest it multiplies matrices and convolves."""

import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from hf_clip.utils.hardware import fastest_dtype

SIDE = 2048
CHANNELS, MAP, BATCH = 256, 28, 8  # the middle of a ResNet


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, {capability}"


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return True if bfloat16 has hardware: without it, products are computed in float32, and slowly."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return fastest_dtype(device)[0] == torch.bfloat16


def peaks(device: torch.device) -> dict[str, tuple[Callable[[], object], float]]:
    """Return functions to time and their floating-point operations: a matrix product, a 3x3 convolution."""
    a, b = torch.randn(2, SIDE, SIDE, device=device)
    x = torch.randn(BATCH, CHANNELS, MAP, MAP, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device).to(memory_format=torch.channels_last)
    return {
        "matrix peak": (lambda: a @ b, 2.0 * SIDE**3),
        "convolution peak": (lambda: F.conv2d(x, weight, padding=1), 2.0 * 9 * CHANNELS**2 * MAP**2 * BATCH),
    }
