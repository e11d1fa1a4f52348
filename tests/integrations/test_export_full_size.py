"""The nine at full size on both runtimes, beside PyTorch.

One ViT runs on ONNX Runtime with the other integrations, and one ResNet on OpenVINO. All nine take 25 minutes and 16 GB
of memory: `python -m pytest -m exhaustive tests/integrations/test_export_full_size.py`. `python -m benchmarks.export`
prints their table.
"""

from itertools import product

import pytest

from benchmarks.export import NAMES, RUNTIMES, TOWERS, in_fresh_process, write_random

ALWAYS = {("ViT-B/32", "onnx"), ("RN50", "openvino")}
LARGEST = "RN50x64"  # its joint weights do not fit one protobuf


def case(name: str, runtime: str):
    often = (name, runtime) in ALWAYS
    marks = [pytest.mark.integration, pytest.mark.slow] if often else [pytest.mark.exhaustive]
    return pytest.param(name, runtime, marks=marks)


@pytest.mark.parametrize(("name", "runtime"), [case(*pair) for pair in product(NAMES, RUNTIMES)])
def test_towers_equal_the_model(name, runtime, tmp_path):
    folder = write_random(name, tmp_path / "model")
    for part in TOWERS:
        row = in_fresh_process(folder, runtime, part)
        assert row["error"] <= 1e-5, part


@pytest.mark.exhaustive
def test_weights_beyond_two_gib_lie_beside_their_graph(tmp_path):
    folder = write_random(LARGEST, tmp_path / "model")
    assert in_fresh_process(folder, "onnx", "joint")["error"] <= 1e-5
