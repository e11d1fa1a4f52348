"""Models and folders that the command refuses, and an export that is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.commands import run
from support.image_corpus import random_image

from hf_clip import HFCLIPModel, HFCLIPProcessor, export_clip
from hf_clip.export import towers

pytestmark = pytest.mark.integration


@pytest.fixture
def said(capsys):
    """Return the one sentence that a command printed on standard error."""

    def sentence() -> str:
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, lines
        return lines[0]

    return sentence


def test_a_folder_with_an_adapter_is_refused(repositories, family, tmp_path, said):
    from peft import LoraConfig, get_peft_model

    base = HFCLIPModel.from_pretrained(repositories[family])
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    HFCLIPProcessor.from_pretrained(repositories[family]).save_pretrained(tmp_path / "lora")
    assert run("export", tmp_path / "lora", "--output", tmp_path / "out") == 1
    assert f"hf-clip merge MODEL {tmp_path / 'lora'} --alpha 1" in said()
    assert not (tmp_path / "out").exists()


def test_a_quantized_folder_is_refused(repositories, family, tmp_path, said):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    model = HFCLIPModel.from_pretrained(repositories[family], quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path / "packed")
    HFCLIPProcessor.from_pretrained(repositories[family]).save_pretrained(tmp_path / "packed")
    assert run("export", tmp_path / "packed", "--output", tmp_path / "out") == 1
    assert "choose precision q8" in said()
    assert not (tmp_path / "out").exists()


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random_image("RGB", 40, 50, np.random.default_rng(0)).save(folder / "0.png")
    return folder


@pytest.fixture(scope="module")
def folders(repositories, tmp_path_factory) -> dict[str, Path]:
    """A tiny ViT on both runtimes, its weights beside the graph, as those of 2 GiB are."""
    directory = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "INLINE_BYTES", 0)
        for runtime in ("onnx", "openvino"):
            export_clip(repositories["tiny ViT"], directory / runtime, runtime=runtime, report=lambda _: None)
    return {runtime: directory / runtime for runtime in ("onnx", "openvino")}


def test_weights_beside_the_graph_become_8_bits(repositories, photos, tmp_path, monkeypatch):
    """As in a graph of 2 GiB: the quantized one opens without the first one's file."""
    monkeypatch.setattr(towers, "INLINE_BYTES", 0)
    options = {"parts": ["vision"], "precisions": ["q8"], "calibration": photos, "report": lambda _: None}
    for family, source in repositories.items():
        found = export_clip(source, tmp_path / family, **options)["files"]
        [measured] = found.values()
        assert measured["relative_error_max"] < 0.1
        names = {path.name for path in (tmp_path / family / "onnx").iterdir()}
        assert names == {"vision_model_quantized.onnx", "vision_model_quantized.onnx_data"}


@pytest.mark.parametrize(
    ("runtime", "lost", "message"),
    [
        ("onnx", "onnx/vision_model.onnx_data", "copy it with its _data"),
        ("onnx", "onnx/vision_model.onnx", "vision_model.onnx is missing"),
        ("openvino", "openvino/vision_model.bin", "copy it with its .bin"),
    ],
)
def test_a_folder_that_lost_a_file_is_refused(folders, photos, runtime, lost, message, tmp_path, said):
    folder = shutil.copytree(folders[runtime], tmp_path / "copy")
    classify = ("classify", photos, "--labels", "a,b", "--model", folder)
    assert run(*classify) == 0
    (folder / lost).unlink()
    assert run(*classify) == 1
    assert message in said()
    (folder / "parity.json").unlink()
    assert run("verify", folder) == 1
    assert "export the model again" in said()


def test_a_device_without_its_runtime_is_refused(folders, repositories, photos, tmp_path, said):
    folder = folders["onnx"]
    for device in ("cuda", "mps"):
        assert run("embed", photos, "-o", tmp_path / "x.npy", "--model", folder, "--device", device) == 1
        assert device in said()
    assert run("classify", photos, "--labels", "a,b", "--model", folder, "--dtype", "int8") == 1
    assert "has no q8, only fp32" in said()
    assert run("classify", photos, "--labels", "a,b", "--model", repositories["tiny ViT"], "--dtype", "int8") == 1
    assert "export it with --precision q8" in said()


def test_a_killed_export_leaves_no_folder_and_the_next_one_works(repositories, tmp_path):
    code = "from hf_clip.cli.app import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "export",
        repositories["tiny ViT"],
        "-o",
        tmp_path / "out",
        "--parts",
        "vision",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob(".out.*/onnx/*.onnx")):
            assert process.poll() is None, "the export ended before it could be killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert (tmp_path / "out" / "parity.json").is_file()
    shutil.rmtree(tmp_path / "out")


def test_the_help_teaches(capsys):
    assert run("export", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("Example: hf-clip export", "--evaluate", "--calibrate", "parity.json", "--dtype int8"):
        assert word in text
