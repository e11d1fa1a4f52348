"""What `hf-clip finetune` says of data and disks that it cannot use: one sentence, and nothing is lost."""

import re
from pathlib import Path

import pytest
import torch
from support.commands import run
from support.data_sets import captions, class_folders, files, write_csv
from transformers import Trainer

from hf_clip.training import datasets

pytestmark = pytest.mark.training


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "folder", each=4)


@pytest.fixture
def pairs(folder: Path) -> Path:
    return write_csv(folder / "pairs.csv", captions(folder))


@pytest.fixture
def finetune(repositories: dict[str, Path], tmp_path: Path, capsys):
    """Run the command, and return its exit status and the lines of stderr."""

    def finetune(data: Path, *options: str) -> tuple[int, list[str]]:
        always = ("--model", repositories["tiny ViT"], "--output", tmp_path / "tuned", "--batch-size", "4")
        quick = () if "--epochs" in options else ("--epochs", "1")
        readers = () if "--workers" in options else ("--workers", "0")
        status = run("finetune", data, *always, *quick, *readers, *options)
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return status, [line for line in re.split(r"[\r\n]", error) if line]

    return finetune


def refusal(result: tuple[int, list[str]]) -> str:
    status, lines = result
    assert status == 1
    (sentence,) = [line for line in lines if line.startswith("error: ")]
    return sentence


@pytest.mark.parametrize(("rows", "message"), [(0, "has no rows"), (1, "a batch has 1 pair")])
def test_too_little_data(finetune, folder: Path, rows: int, message: str):
    table = folder / "few.csv"
    table.write_text("\n".join(["image,text", *["blue_square/0.png,one"] * rows]) + "\n")
    assert message in refusal(finetune(table))


def test_a_folder_without_images(finetune, tmp_path: Path):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    assert "there are no images in" in refusal(finetune(tmp_path / "empty"))


@pytest.mark.slow
def test_a_class_with_one_image_is_trained_on(finetune, folder: Path):
    for file in files(folder)[:3]:
        file.unlink()
    assert finetune(folder)[0] == 0


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.slow
def test_long_captions_are_cut_with_one_warning(finetune, folder: Path, monkeypatch, tmp_path: Path, workers: str):
    """Of all processes that read."""
    warnings = tmp_path / "warnings"
    monkeypatch.setattr(datasets.logger, "warning", lambda text: warnings.open("a").write(f"{text}\n"))
    data = write_csv(folder / "long.csv", [row | {"text": "long " * 100} for row in captions(folder)])
    assert finetune(data, "--workers", workers, "--epochs", "2")[0] == 0
    (line,) = warnings.read_text().splitlines()
    assert "captions of over 77 tokens are cut, such as 'long long" in line


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.slow
def test_an_unreadable_majority(finetune, folder: Path, workers: str):
    for file in files(folder):
        file.write_bytes(b"no image")
    sentence = refusal(finetune(folder, "--workers", workers))
    assert re.fullmatch(
        r"error: \d of \d images cannot be read, the last of them .*\.png: check the paths .*", sentence
    )


@pytest.mark.slow
def test_an_unreadable_image_on_a_worker_if_strict(finetune, folder: Path):
    files(folder)[2].write_bytes(b"no image")
    sentence = refusal(finetune(folder, "--workers", "1", "--strict"))
    assert re.match(r"error: cannot read .*2\.png: it is no image$", sentence)


def test_a_watched_set_of_unreadable_images(finetune, folder: Path, pairs: Path, tmp_path: Path):
    for file in files(class_folders(tmp_path / "watched")):
        file.write_bytes(b"no image")
    assert "no image of" in refusal(finetune(pairs, "--watch", str(tmp_path / "watched")))


@pytest.mark.slow
def test_a_loss_that_is_no_number(finetune, pairs: Path, tmp_path: Path):
    """The checkpoint before it is kept, and the weights of the output are not written."""
    sentence = refusal(finetune(pairs, "--lr", "1e30", "--epochs", "4", "--save-steps", "1"))
    assert re.search(r"the loss of step \d is nan: lower the learning rate, or check .*\d\.png", sentence)
    assert "earlier checkpoints are intact" in sentence
    assert (tmp_path / "tuned" / "checkpoint-1" / "model.safetensors").is_file()
    assert not (tmp_path / "tuned" / "model.safetensors").exists()


class FullDiskError(Exception):
    """As safetensors says it: no OSError."""


@pytest.mark.parametrize("where", ["checkpoint-2", "tuned"])
@pytest.mark.slow
def test_a_full_disk(finetune, pairs: Path, tmp_path: Path, monkeypatch, where: str):
    """At a checkpoint, and at the end: what was written before is kept, and training goes on once there is room."""
    save = Trainer._save

    def full(trainer: Trainer, folder: str, state_dict: dict | None = None) -> None:
        save(trainer, folder, state_dict)
        if Path(folder).parent.name == where:
            Path(folder, "model.safetensors").write_bytes(b"half")
            raise FullDiskError("No space left on device")

    settings = ("--epochs", "2", "--save-steps", "1")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", full)
        sentence = refusal(finetune(pairs, *settings))
    last = "checkpoint-1" if where == "checkpoint-2" else "checkpoint-4"
    assert re.search(
        rf"{where} cannot be written \(No space left .* MiB are free\): make room, then .*{last}$", sentence
    )
    found = {path.name for path in (tmp_path / "tuned").iterdir() if not path.name.startswith("checkpoint-")}
    assert found == {"training.json"}
    assert not (tmp_path / "tuned" / "checkpoint-2").exists() or where == "tuned"
    assert finetune(pairs, *settings, "--resume")[0] == 0
    assert (tmp_path / "tuned" / "model.safetensors").stat().st_size > 1e6


@pytest.mark.slow
def test_data_that_changed_between_run_and_resume(finetune, folder: Path, pairs: Path, tmp_path: Path):
    assert finetune(pairs, "--save-steps", "1")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "tuned").rglob("*") if path.is_file()}
    write_csv(pairs, [row | {"text": "else"} for row in captions(folder)])
    assert "was trained on other data" in refusal(finetune(pairs, "--epochs", "2", "--resume"))
    assert before == {path: path.read_bytes() for path in (tmp_path / "tuned").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_forced_run_does_not_leave_checkpoints_to_resume_another_from(finetune, pairs: Path, tmp_path: Path):
    assert finetune(pairs, "--save-steps", "2", "--epochs", "2")[0] == 0
    assert finetune(pairs, "--save-steps", "2", "--force")[0] == 0
    assert {path.name for path in (tmp_path / "tuned").glob("checkpoint-*")} == {"checkpoint-2"}
    assert torch.load(tmp_path / "tuned" / "checkpoint-2" / "scheduler.pt", weights_only=True)["last_epoch"] == 2
