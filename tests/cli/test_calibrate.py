import json

import pytest
from PIL import Image
from support.commands import run
from support.data_sets import class_folders, picture, write_csv
from support.originals import FAMILIES

from hf_clip import ZeroShotClassifier
from hf_clip.cli import common
from hf_clip.cli.blocks import Loading

LABELS = "a blue square,a red circle"


@pytest.fixture
def data(tmp_path):
    return class_folders(tmp_path / "data", each=4)


def classify(data, saved, model, capsys, *options) -> list[dict]:
    assert run("classify", data, "--labels", saved, "--model", model, "--json", *options) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_calibrated_classifier_is_saved_and_used(data, repositories, family, tmp_path, capsys):
    saved, plot = tmp_path / "pets.safetensors", tmp_path / "bins.png"
    arguments = ["calibrate", data, "--labels", LABELS, "--model", repositories[family], "--output", saved]
    assert run(*arguments, "--recall", 0.3, "--plot", plot) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("8 images: expected calibration error 0.")
    assert any(line.startswith("note: 2 of 2 labels have fewer than 10 images") for line in out)
    with Image.open(plot) as drawn:
        assert drawn.width > 400
    found = classify(data, saved, repositories[family], capsys)
    assert [set(line) for line in found] == [{"image", "labels", "decision", "margin", "reason"}] * 8
    assert {answer["label"] for answer in found[0]["labels"]} == set(LABELS.split(","))
    sets = [line["set"] for line in classify(data, saved, repositories[family], capsys, "--sets", 0.1)]
    assert len(sets) == 8
    assert {label for found in sets for label in found} <= set(LABELS.split(","))
    assert run(*arguments) == 1
    assert "exists: choose another output" in capsys.readouterr().err


def test_pictures_of_none_and_of_several_labels(data, repositories, tmp_path, capsys):
    (data / "none_of_these").mkdir()
    for number in range(4):
        picture((90, 90, 90), number).save(data / "none_of_these" / f"{number}.png")
    model, saved = repositories[FAMILIES[0]], tmp_path / "saved.safetensors"
    assert run("calibrate", data, "--none", "--model", model, "--output", saved, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 12
    assert report["examples"] == {"blue square": 4, "red circle": 4}
    names = {answer["label"] for answer in classify(data, saved, model, capsys)[0]["labels"]}
    assert names == {"blue square", "red circle", "none of these"}
    assert run("calibrate", data, "--model", model, "--output", saved, "--force") == 1
    assert "shows none of the labels: take the mode any or each" in capsys.readouterr().err

    files = [f"data/{folder}/{number}.png" for folder in ("blue_square", "red_circle") for number in range(4)]
    rows = [{"image": file, "label": file.split("/")[1]} for file in files]
    table = write_csv(tmp_path / "rows.csv", [*rows, {"image": files[0], "label": "red_circle"}])
    assert run("calibrate", table, "--each", "--model", model, "--output", saved, "--force", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["examples"]) == (8, {"blue_square": 4, "red_circle": 5})


def test_decisions_on_the_command_line(data, repositories, capsys):
    model = repositories[FAMILIES[0]]
    arguments = ["classify", data, "--labels", LABELS, "--model", model]
    assert run(*arguments, "--each", "--threshold", 0) == 0
    assert ": a blue square, a red circle  (" in capsys.readouterr().out
    assert run(*arguments, "--none", "--background", "a photo,a drawing", "--threshold", 1) == 0
    shown = capsys.readouterr()
    assert ": none of these  (" in shown.out
    assert "is a guess" not in shown.err
    assert run(*arguments, "--none") == 0
    assert "'none of these' by the default background is a guess: name with --background" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--none", "--each"], "--none and --each are both given"),
        (["--background", "sky"], "--background has no effect by itself"),
        (["--labels", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_options_that_contradict_each_other(data, repositories, options, message, capsys):
    arguments = ["classify", data, "--labels", LABELS, "--model", repositories[FAMILIES[0]]]
    assert run(*arguments, *options) == 1
    assert message in capsys.readouterr().err


def test_a_saved_classifier_is_calibrated(data, repositories, tmp_path, capsys):
    saved, output = tmp_path / "few.safetensors", tmp_path / "sure.safetensors"
    model, processor = common.load_model(str(repositories[FAMILIES[0]]), Loading())
    labels = ["red circle", "blue square"]  # the classes stand in another order
    ZeroShotClassifier(model, processor, labels, mode="each").save(saved)
    arguments = ["calibrate", data, "--model", repositories[FAMILIES[0]], "--labels", saved, "--output", output]
    assert run(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["examples"] == dict.fromkeys(labels, 4)
    loaded = ZeroShotClassifier.load(output, model, processor)
    assert (loaded.labels, loaded.head.mode) == (labels, "each")
    assert loaded.calibration is not None
    assert run(*arguments, "--none") == 1
    assert "has its own templates and mode" in capsys.readouterr().err


def test_labels_that_do_not_fit_the_data(data, repositories, tmp_path, capsys):
    arguments = ["calibrate", data, "--model", repositories[FAMILIES[0]]]
    assert run(*arguments, "--labels", "a,b,c", "--output", tmp_path / "x.safetensors") == 1
    assert "has 2 classes beside 'none of these', 3 labels are given" in capsys.readouterr().err
    assert run(*arguments, "--output", tmp_path / "x.json") == 1
    assert "should end in .safetensors" in capsys.readouterr().err
    assert not list(tmp_path.glob("x*"))
