import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support.commands import run
from support.originals import FAMILIES
from support.photos import BROKEN, READABLE, left_behind, load

from hf_clip.cli import classify
from hf_clip.zero_shot.classifier import ZeroShotClassifier

LABELS = ["a cat", "two dogs", "a diagram"]


def test_classify_gives_what_the_classifier_gives(repositories, photos, family, capsys):
    arguments = ["classify", photos, "--labels", ",".join(LABELS), "--model", repositories[family], "--top-k", 2]
    assert run(*arguments, "--json", "--batch-size", 3) == 0
    out, err = capsys.readouterr()
    paths = [str(photos / path) for path in READABLE]
    expected = ZeroShotClassifier(*load(repositories[family]), LABELS)(paths, top_k=2)
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in found] == paths
    for line, answers in zip(found, expected, strict=True):
        assert [answer["label"] for answer in line["labels"]] == [answer["label"] for answer in answers]
        assert [answer["score"] for answer in line["labels"]] == pytest.approx([a["score"] for a in answers], abs=1e-6)
    assert f"skipped: cannot read {photos / BROKEN}" in err
    assert f"1 of 8 images could not be read: {photos / BROKEN}" in err

    assert run(*arguments) == 0
    first = ", ".join(f"{answer['label']} {answer['score']:.1%}" for answer in expected[0])
    assert capsys.readouterr().out.splitlines()[0] == f"{paths[0]}: {first}"


def test_labels_and_templates(repositories, photos, tmp_path, capsys):
    """From files as from the command line."""
    (tmp_path / "labels.txt").write_text("\ufeffa cat\n\n two dogs \na diagram\n", "utf-8")
    (tmp_path / "templates.txt").write_text("a photo, {}\na drawing of {}.\n")
    templates = ["a photo, {}", "a drawing of {}."]
    outputs = []
    for options in (
        ["--labels", tmp_path / "labels.txt", "--templates", tmp_path / "templates.txt"],
        ["--labels", "a cat, two dogs,a diagram", "--templates", templates[0], "--templates", templates[1]],
    ):
        assert run("classify", photos / "0.png", "--json", "--model", repositories[FAMILIES[0]], *options) == 0
        outputs.append(json.loads(capsys.readouterr().out)["labels"])
    [expected] = ZeroShotClassifier(*load(repositories[FAMILIES[0]]), LABELS, templates)(photos / "0.png")
    assert outputs == [expected, expected]


def test_images_by_pattern_and_from_stdin(repositories, photos, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    options = ["--labels", "a,b", "--model", repositories[FAMILIES[0]], "--json"]
    monkeypatch.setattr("sys.stdin", io.StringIO("b/1.jpg\n\n0.png\n"))
    for images, expected in (
        (["**/*.[jJ][pP]*", "0.png"], ["b/1.jpg", "b/c/2.JPG", "0.png"]),
        (["b", "-"], ["b/1.jpg", "b/c/2.JPG", "b/1.jpg", "0.png"]),
    ):
        assert run("classify", *images, *options) == 0
        out, err = capsys.readouterr()
        assert [json.loads(line)["image"] for line in out.splitlines()] == expected
        assert "skipped" not in err


def test_plot(repositories, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(classify, "MAX_DRAWN", 3)
    shutil.copy(photos / "0.png", photos / "$0_$.png")  # no formula
    picture = tmp_path / "out.png"
    arguments = ["classify", photos, "--labels", "a cat,$x_$", "--model", repositories[FAMILIES[0]], "--plot", picture]
    assert run(*arguments) == 0
    assert "the first 3 of 8 images" in capsys.readouterr().err
    with Image.open(picture) as image:
        assert image.width == 3 * 360  # three in a row
        assert len(image.getcolors(image.width * image.height)) > 1000
        bars = np.asarray(image.convert("RGB")) == (137, 164, 206)  # score_plot.BAR, as transparent as it is drawn
        assert bars.all(-1).sum() > 10_000
    assert not left_behind(tmp_path)
