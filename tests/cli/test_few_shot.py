import json

from support.commands import run
from support.data_sets import class_folders
from support.photos import load

from hf_clip import ZeroShotClassifier


def test_few_shot_writes_a_classifier_and_reports_it(repositories, tmp_path, capsys):
    photos = class_folders(tmp_path / "photos", each=4)
    output, model = tmp_path / "few.safetensors", repositories["tiny ViT"]
    arguments = ["few-shot", photos, "--model", model, "--output", output, "--store", tmp_path / "kept"]
    assert run(*arguments, "--json") == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["task"] == "few_shot"
    assert 0 <= result["metrics"]["acc1"] <= 1
    assert "chosen: " in said.err
    classifier = ZeroShotClassifier.load(output, *load(model))
    assert classifier.labels == ["blue square", "red circle"]
    image = photos / "red_circle/0.png"
    assert run("classify", image, "--labels", output, "--model", model) == 0
    assert "red circle" in capsys.readouterr().out
    assert run(*arguments) == 1
    assert "few.safetensors exists" in capsys.readouterr().err
    assert run(*arguments, "--force", "--head", "ridge") == 0
    said = capsys.readouterr()
    assert "linear_probe_acc1" in said.out
    assert "chosen: ridge" in said.err


def test_bad_input_ends_before_a_model_is_read(tmp_path, capsys):
    photos = class_folders(tmp_path / "photos")
    for wrong, message in (
        (["--output", "few.pt"], "few.pt should end in .safetensors"),
        (["--output", "few.safetensors", "--head", "forest"], "head is 'forest': choose auto, prototypes"),
    ):
        assert run("few-shot", photos, "--model", "nowhere", *wrong) == 1
        assert message in capsys.readouterr().err
