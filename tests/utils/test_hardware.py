import logging

import pytest
import torch

from hf_clip.utils import hardware
from hf_clip.utils.hardware import fastest_dtype, warn_if_slow


@pytest.fixture
def cpu(monkeypatch):
    """Set the capabilities of the CPU."""
    hardware._warn_of_float16.cache_clear()
    return lambda *names: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))


@pytest.mark.parametrize(
    ("names", "device", "dtype", "reason"),
    [
        (["avx512_bf16"], "cpu", torch.bfloat16, "AVX512_BF16"),
        (["amx_bf16", "avx512_bf16"], None, torch.bfloat16, "AMX"),
        (["avx2", "avx512_f"], "cpu", torch.float32, "no instructions for bfloat16"),
        ([], "cuda:1", torch.float16, "GPU"),
        ([], "mps", torch.float32, "no other dtype"),
    ],
)
def test_the_fastest_dtype_is_what_the_hardware_has(names, device, dtype, reason, cpu):
    cpu(*names)
    found, why = fastest_dtype(device)
    assert found == dtype
    assert reason in why


@pytest.mark.parametrize(("names", "faster"), [([], "float32"), (["avx512_bf16"], "bfloat16")])
def test_float16_on_a_cpu_without_it_is_told_once_with_the_faster_choice(names, faster, cpu, caplog):
    cpu(*names)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            warn_if_slow(torch.float16, "cpu")
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == [faster]


@pytest.mark.parametrize(
    ("names", "dtype", "device"),
    [
        (["avx512_fp16"], torch.float16, "cpu"),
        ([], torch.float32, "cpu"),
        ([], None, None),
        ([], torch.float16, "cuda"),
    ],
)
def test_nothing_is_told_where_nothing_is_slow(names, dtype, device, cpu, caplog):
    cpu(*names)
    with caplog.at_level(logging.WARNING):
        warn_if_slow(dtype, device)
    assert not caplog.records
