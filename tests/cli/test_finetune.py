"""`hf-clip finetune` and `hf-clip merge`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import run
from support.data_sets import captions, class_folders, files, multilabel_wds, pairs_tar, write_csv
from support.local_hub import LocalHub
from transformers import AutoModel

from hf_clip import HFCLIPProcessor, ZeroShotClassifier, load_clip
from hf_clip.cli.finetune import Loss, chosen_loss, default_epochs
from hf_clip.cli.merge import balance, parse_sweep
from hf_clip.data.read import read_rows
from hf_clip.training.datasets import PairDataset

pytestmark = pytest.mark.training


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "folder", each=4)


@pytest.fixture
def model(repositories: dict[str, Path]) -> Path:
    return repositories["tiny ViT"]


QUICK = ("--epochs", "1", "--batch-size", "4", "--workers", "0")


@pytest.mark.slow
def test_every_layout_of_the_data_gives_the_same_weights(folder: Path, model: Path, tmp_path: Path):
    layouts = {
        "csv": write_csv(folder / "pairs.csv", captions(folder)),
        "tar": pairs_tar(tmp_path / "pairs.tar", folder),
        "metadata": write_csv(folder / "metadata.csv", captions(folder)).parent,
    }
    found = []
    for name, data in layouts.items():
        assert run("finetune", data, "--model", model, "--output", tmp_path / name, *QUICK) == 0
        found.append(load_file(tmp_path / name / "model.safetensors"))
    for weights in found[1:]:
        assert all(torch.equal(tensor, found[0][name]) for name, tensor in weights.items())


@pytest.mark.filterwarnings("error:`gradient_checkpointing` is deprecated:FutureWarning")
def test_labels_are_trained_and_measured(folder: Path, model: Path, tmp_path: Path, capsys):
    output = tmp_path / "tuned"
    options = ("--eval", folder, "--watch", f"same={folder}", "--templates", "a picture of a {}")
    assert run("finetune", folder, "--model", model, "--output", output, *options, *QUICK) == 0
    assert "| same_acc1 | " in capsys.readouterr().out
    report = json.loads((output / "training.json").read_text())
    assert report["before"].keys() == report["after"].keys() == {"data_acc1", "same_acc1"}
    assert (output / "training.png").stat().st_size > 1000
    assert f"{model.name}, fine-tuned on {folder.name} with" in (output / "README.md").read_text()
    assert type(AutoModel.from_pretrained(output)).__name__ == "HFCLIPModel"
    kept = ZeroShotClassifier.load(output / "classifier.safetensors", *load_clip(output))
    assert (kept.labels, kept.templates) == (["blue square", "red circle"], ["a picture of a {}"])


def test_images_of_several_classes_are_trained_and_measured(model: Path, tmp_path: Path, capsys):
    data = multilabel_wds(tmp_path) / "test"
    output = tmp_path / "tuned"
    options = ("--eval", data, *QUICK, "--epochs", "8", "--lr", "1e-3")
    assert run("finetune", data, "--model", model, "--output", output, *options) == 0
    report = json.loads((output / "training.json").read_text())
    assert report["settings"]["loss"] == "classes"
    assert report["after"]["data_mean_average_precision"] > report["before"]["data_mean_average_precision"]
    assert report["data"] == {"data": "8 images, 2 classes, chance 0.5000"}
    capsys.readouterr()
    options = ("--model", output, "--json", "--plot", tmp_path / "drawn.png")
    assert run("evaluate", "zero-shot", data, *options) == 0
    measured = json.loads(capsys.readouterr().out)["metrics"]
    assert measured == {"mean_average_precision": pytest.approx(report["after"]["data_mean_average_precision"])}
    assert (tmp_path / "drawn.png").stat().st_size > 1000
    options = ("--model", model, "--output", tmp_path / "no", *QUICK, "--loss", "contrastive")
    assert run("finetune", data, *options) == 1
    assert 'may show several classes: set loss="classes"' in capsys.readouterr().err


def test_a_finished_output_is_not_replaced_unless_forced(folder: Path, model: Path, tmp_path: Path, capsys):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "mine.txt").touch()
    assert run("finetune", folder, "--model", model, "--output", tmp_path / "tuned", *QUICK) == 1
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume",), "no complete checkpoint to resume from"),
        (("--watch", "nowhere"), "there is no nowhere"),
        (("--templates", "a photo"), "lacks {}"),
        (("--watch", "{csv}"), "images without a label"),
        (("--eval", "{csv}", "--eval", "{csv}"), "--eval is given 2 times: choose one"),
        (("--epochs", "0"), "--epochs is 0, which trains nothing"),
        (("--lr", "0"), "--lr is 0, which trains nothing"),
        (("--lora-rank", "4"), "--lora-rank is for --train lora"),
        (("--lora-dropout", "0.25"), "--lora-dropout is for --train lora"),
        (("--lora-targets", "q_proj,k_proj"), "--lora-targets is for --train lora"),
        (("--patience", "2"), "--patience needs --eval"),
        (
            ("--balance", "weights", "--loss", "contrastive"),
            'balance is "weights", the loss contrastive has no classes',
        ),
    ],
)
def test_bad_options_end_in_one_sentence(folder: Path, model: Path, tmp_path: Path, capsys, options, message: str):
    csv = write_csv(folder / "pairs.csv", captions(folder))
    options = [option.replace("{csv}", str(csv)) for option in options]
    assert run("finetune", folder, "--model", model, "--output", tmp_path / "tuned", *QUICK, *options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_templates_are_for_labels(folder: Path, model: Path, tmp_path: Path, capsys):
    csv = write_csv(folder / "pairs.csv", captions(folder))
    assert run("finetune", csv, "--model", model, "--output", tmp_path / "tuned", *QUICK, "--templates", "a {}") == 1
    assert "--templates are prompts for labels" in capsys.readouterr().err


def test_a_table_of_absolute_paths_is_read_where_allowed(folder: Path, model: Path, tmp_path: Path, capsys):
    (tmp_path / "elsewhere").mkdir()
    rows = [{**row, "image": str(folder / row["image"])} for row in captions(folder)]
    table = write_csv(tmp_path / "elsewhere" / "pairs.csv", rows)
    arguments = ("finetune", table, "--model", model, "--output", tmp_path / "tuned", *QUICK)
    assert run(*arguments) == 1
    assert "--allow-scheme file" in capsys.readouterr().err
    assert run(*arguments, "--eval", table, "--allow-scheme", "file") == 0


def test_columns_and_separators_are_found(folder: Path, model: Path, tmp_path: Path, capsys):
    """open_clip writes tabs, and spreadsheets of many countries semicolons."""
    rows = captions(folder)
    for number, separator in enumerate(";\t"):
        lines = [separator.join(("picture", "says")), *(separator.join((row["image"], row["text"])) for row in rows)]
        (folder / f"{number}.csv").write_text("\n".join(lines))
        columns = ("--image-column", "picture", "--text-column", "says")
        output = tmp_path / f"tuned-{number}"
        assert run("finetune", folder / f"{number}.csv", "--model", model, "--output", output, *QUICK, *columns) == 0
    assert "2 steps of 4 images (1 epochs), contrastive loss; the rate rises to 1e-05" in capsys.readouterr().out


def test_the_defaults_go_by_steps():
    assert default_epochs(1) == 100  # of 100 images: 100 steps, not 3
    assert default_epochs(10) == 30
    assert default_epochs(5000) == 3


def test_labels_are_trained_with_the_loss_over_classes_unless_it_cannot_be(folder: Path):
    labels, pairs = (
        PairDataset(read_rows(folder)),
        PairDataset(read_rows(write_csv(folder / "x.csv", captions(folder)))),
    )
    assert chosen_loss(Loss.auto, labels, None) == "classes"
    assert chosen_loss(Loss.auto, labels, 8) == chosen_loss(Loss.auto, pairs, None) == "contrastive"
    assert chosen_loss(Loss.siglip, labels, None) == "siglip"


@pytest.mark.slow
def test_an_unreadable_image_is_named(folder: Path, model: Path, tmp_path: Path, capsys, caplog):
    files(folder)[2].write_bytes(b"no image")
    arguments = ("finetune", folder, "--model", model, "--output", tmp_path / "tuned", *QUICK)
    assert run(*arguments) == 0
    assert run(*arguments, "--force", "--strict") == 1
    assert "2.png" in capsys.readouterr().err


@pytest.fixture
def tuned(model: Path, tmp_path: Path) -> Path:
    changed = AutoModel.from_pretrained(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 0.01
    changed.save_pretrained(tmp_path / "tuned")
    HFCLIPProcessor.from_pretrained(model).save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_merging_goes_from_end_to_end(model: Path, tuned: Path, tmp_path: Path, alpha: float):
    assert run("merge", model, tuned, "--output", tmp_path / "merged", "--alpha", alpha) == 0
    first, last, merged = (AutoModel.from_pretrained(path).state_dict() for path in (model, tuned, tmp_path / "merged"))
    for name, tensor in merged.items():
        if alpha in (0, 1):
            assert torch.equal(tensor, (first, last)[alpha][name])
        else:
            torch.testing.assert_close(tensor, (first[name] + last[name]) / 2)


def test_a_result_is_uploaded_without_its_checkpoints(folder: Path, model: Path, tmp_path: Path, monkeypatch, capsys):
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    options = ("--push-to-hub", "somebody/tuned")
    with LocalHub("hf_token") as hub:
        hub.use_in_process(monkeypatch)
        assert run("finetune", folder, "--model", model, "--output", tmp_path / "tuned", *QUICK, *options) == 0
        files = hub.files("somebody/tuned")
        hub.read_only = True
        options = ("--push-to-hub", "somebody/other")
        assert run("finetune", folder, "--model", model, "--output", tmp_path / "no", *QUICK, *options) == 1
    (model / "README.md").unlink()
    assert list((tmp_path / "tuned").glob("checkpoint-*"))
    assert {"model.safetensors", "config.json", "README.md", "training.json"} <= files.keys()
    assert not [name for name in files if "checkpoint" in name]
    assert b'license: "apache-2.0"\n' in files["README.md"]  # that of its base
    assert not (tmp_path / "no").exists()  # what cannot be uploaded is not trained
    found = capsys.readouterr()
    assert "somebody/tuned" in found.out
    assert "hf_token" not in found.err


def test_a_sweep_over_what_is_learned_and_kept_draws_the_curve(
    model: Path, tuned: Path, folder: Path, tmp_path: Path, capsys
):
    """The best is that of the mean of both, as either alone is at an end of the curve."""
    other = class_folders(tmp_path / "other", each=2)
    options = ("--sweep", "0:1:0.5", "--eval", folder, "--watch", f"kept={other}", "--license", "mit")
    assert run("merge", model, tuned, "--output", tmp_path / "merged", *options) == 0
    report = json.loads((tmp_path / "merged" / "sweep.json").read_text())
    assert report["data"].keys() == {"folder", "kept"}
    assert [row["alpha"] for row in report["sweep"]] == [0, 0.5, 1]
    means = {row["alpha"]: row["folder acc1"] + row["kept acc1"] for row in report["sweep"]}
    assert means[report["chosen"]] == max(means.values())
    assert (tmp_path / "merged" / "sweep.png").stat().st_size > 1000
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "| alpha | folder acc1 | kept acc1 |" in card
    assert 'license: "mit"\n' in card
    assert f"alpha {report['chosen']:g}" in capsys.readouterr().out.splitlines()[-1]


def test_what_is_learned_and_what_is_kept_decide_alike():
    assert balance({"alpha": 0.5, "new acc1": 0.6}) == 0.6
    assert balance({"alpha": 0.5, "new acc1": 0.6, "old acc1": 0.9, "other acc1": 0.7}) == pytest.approx(0.7)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.slow
def test_a_sweep_writes_the_best(model: Path, tuned: Path, folder: Path, tmp_path: Path, capsys, labels: bool):
    data = folder if labels else write_csv(folder / "pairs.csv", captions(folder))
    assert run("merge", model, tuned, "--output", tmp_path / "merged", "--sweep", "0:1:0.5", "--eval", data) == 0
    lines = capsys.readouterr().out.splitlines()
    tried = [line.split() for line in lines if line.startswith("alpha ")]
    scores = {words[1].strip(":"): float(words[3].strip(",")) for words in tried}
    assert len(scores) == 3
    assert lines[-1].endswith(f"alpha {max(scores, key=scores.get)}")


def test_a_sweep_needs_data_and_numbers(model: Path, tuned: Path, tmp_path: Path, capsys):
    assert run("merge", model, tuned, "--output", tmp_path / "merged", "--sweep", "0:1:0.1") == 1
    assert "--sweep with --eval" in capsys.readouterr().err
    assert run("merge", model, tuned, "--output", tmp_path / "merged", "--allow-scheme", "file") == 1
    assert "--allow-scheme is for the data of --eval" in capsys.readouterr().err
    assert run("merge", model, tuned, "--output", tmp_path / "merged", "--watch", tmp_path) == 1
    assert "--watch is for the data of --eval" in capsys.readouterr().err
    assert parse_sweep("0:1:0.1") == [round(n / 10, 1) for n in range(11)]
    for wrong in ("0:1", "1:0:0.1", "0:2:0.1", "0:1:0", "a:b:c"):
        with pytest.raises(ValueError, match="--sweep is"):
            parse_sweep(wrong)
