"""The dtypes that the hardware computes fast."""

import logging
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# of torch.cpu.get_capabilities(), with the names that people know; AVX512_BF16 and AMX, and those of ARM
BFLOAT16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16", "sve_bf16": "SVE", "bf16": "BF16"}
FLOAT16 = {"amx_fp16": "AMX", "avx512_fp16": "AVX512_FP16", "fp16_arith": "FP16"}


def default_device() -> "torch.device":
    """Return the GPU where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fastest_dtype(device: "str | torch.device | None" = None) -> "tuple[torch.dtype, str]":
    """Choose the dtype in which matrix products are fastest on a device, and say why.

    Args:
        device: Where to compute; the CPU unless given.

    Returns:
        float16 on CUDA, bfloat16 on a CPU with instructions for it, float32 elsewhere; and the reason.
    """
    import torch

    kind = torch.device(device or "cpu").type
    if kind == "cuda":
        return torch.float16, "the GPU has units for it"
    if kind != "cpu":
        return torch.float32, f"no other dtype is known to be faster on {kind}"
    found = _instructions(BFLOAT16)
    if found is None:
        return torch.float32, "this CPU has no instructions for bfloat16"
    return torch.bfloat16, f"this CPU has {found} instructions"


def warn_if_slow(dtype: "torch.dtype | None", device: "str | torch.device | None" = None) -> None:
    """Warn, once, of float16 on a CPU without instructions for it, and name the faster choice."""
    import torch

    if dtype == torch.float16 and torch.device(device or "cpu").type == "cpu" and _instructions(FLOAT16) is None:
        _warn_of_float16(str(fastest_dtype()[0]).removeprefix("torch."))


@cache
def _warn_of_float16(faster: str) -> None:
    logger.warning(
        "float16 is several times slower than float32 on this CPU, which has no instructions for it: choose %s", faster
    )


def _instructions(names: dict[str, str]) -> str | None:
    """Return the first of `names` that the CPU has, by the name that people know."""
    import torch

    has = torch.cpu.get_capabilities()
    return next((known for name, known in names.items() if has.get(name)), None)


__all__ = ["default_device", "fastest_dtype", "warn_if_slow"]
