"""`hf-clip finetune` in processes of its own: killed and resumed, and two at once."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.data_sets import captions, class_folders, write_csv

pytestmark = [pytest.mark.training, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
EPOCHS = "12"  # 48 steps, so that a signal after the sixth comes before the end
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def desk(tmp_path: Path, repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what docs/finetune.md speaks of."""
    monkeypatch.chdir(tmp_path)
    folder = class_folders(Path("animals"), each=8)
    write_csv(folder / "pairs.csv", captions(folder))
    Path("clip-vit-base-patch32").symlink_to(repositories["tiny ViT"])
    return tmp_path


def finetune(output: str, *options: str) -> list[str]:
    command = [sys.executable, "-m", "hf_clip", "finetune", "animals/pairs.csv", "--model", "clip-vit-base-patch32"]
    settings = ["--epochs", EPOCHS, "--batch-size", "4", "--save-steps", "3", "--workers", "1"]
    return [*command, "--output", output, *settings, *options]


@pytest.fixture
def whole(desk: Path) -> dict[str, torch.Tensor]:
    """The weights of a training that nobody stops."""
    subprocess.run(finetune("whole"), env=ENVIRONMENT, check=True, capture_output=True)
    return load_file("whole/model.safetensors")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("name", "status"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_a_stopped_training_resumes_to_the_same_bits(whole: dict[str, torch.Tensor], name: str, status: int):
    """The signal reaches the workers too, as in a terminal."""
    started = subprocess.Popen(
        finetune("stopped"),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 600
    while not Path("stopped/checkpoint-6/trainer_state.json").exists():
        assert started.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    os.killpg(started.pid, signal.Signals[name])
    error = started.communicate(timeout=600)[1]
    assert started.returncode == status
    assert "Traceback" not in error
    if name == "SIGINT":
        assert re.search(r"^stopped: add --resume to go on from stopped/checkpoint-\d+$", error, re.MULTILINE)
    assert not Path("stopped/model.safetensors").exists()
    subprocess.run(finetune("stopped", "--resume"), env=ENVIRONMENT, check=True, capture_output=True)
    stopped = load_file("stopped/model.safetensors")
    assert all(torch.equal(tensor, stopped[name]) for name, tensor in whole.items())


def test_the_command_of_the_page_trains_on_two_processes(desk: Path):
    page = (ROOT / "docs" / "finetune.md").read_text()
    line = next(line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines())
    words = shlex.split(line)
    assert words[0] == "torchrun"
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *words[1:]], env=ENVIRONMENT, check=True)
    report = json.loads(Path("tuned-2/training.json").read_text())
    assert report["settings"]["batch_size"] == 4
    assert Path("tuned-2/model.safetensors").is_file()


def test_a_killed_worker_ends_the_run_and_another_number_of_processes_goes_on(whole: dict[str, torch.Tensor]):
    """As many pairs make a step on two processes as on one: only sums are rounded in another order."""
    command = finetune("killed")
    size = command.index("--batch-size") + 1
    halves = [*command[:size], "2", *command[size + 1 :]]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started = subprocess.Popen(
        [*torchrun, *halves[1:]], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 600
    while not Path("killed/checkpoint-6/trainer_state.json").exists():
        assert started.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    workers = [child for child in psutil.Process(started.pid).children() if "finetune" in child.cmdline()]
    assert len(workers) == 2
    workers[-1].kill()
    assert started.wait(timeout=600) != 0
    assert not Path("killed/model.safetensors").exists()
    subprocess.run([*command, "--resume"], env=ENVIRONMENT, check=True, capture_output=True)
    found, base = load_file("killed/model.safetensors"), load_file("clip-vit-base-patch32/model.safetensors")
    moved = sum((tensor - base[name]).double().square().sum() for name, tensor in whole.items())
    apart = sum((tensor - found[name]).double().square().sum() for name, tensor in whole.items())
    assert apart < 1e-4 * moved
