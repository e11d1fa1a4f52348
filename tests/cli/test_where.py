import json

import numpy as np
import pytest
from PIL import Image
from support.commands import run
from support.photos import left_behind, load

import hf_clip

TEXTS = ["a cat", "$two$ dogs"]


@pytest.fixture
def photo(photos):
    return photos / "0.png"  # 70 x 40


def test_where_gives_what_the_function_gives(repositories, photo, family, tmp_path, capsys):
    output = tmp_path / "new" / "maps.npz"
    for method in ("dense", "gradient", "rollout"):
        options = ["--method", method, "--model", repositories[family], "--output", output, "--force", "--boxes"]
        assert run("where", photo, *TEXTS, "--json", *options) == 0
        expected = hf_clip.where(*load(repositories[family]), photo, TEXTS, method)
        with np.load(output) as saved:
            assert list(saved["texts"]) == TEXTS
            np.testing.assert_allclose(saved["maps"], expected, atol=1e-6)
        for line, text, map in zip(capsys.readouterr().out.splitlines(), TEXTS, expected, strict=True):
            found = json.loads(line)
            assert found["text"] == text
            assert found["score"] == pytest.approx(map.nan_to_num(-9).max().item(), abs=1e-6)
            assert found["score"] == pytest.approx(map[found["y"], found["x"]].item(), abs=1e-6)
            boxes = hf_clip.find_boxes(map)
            assert [box["box"] for box in found["boxes"]] == [list(box["box"]) for box in boxes]
    assert not left_behind(tmp_path)


def test_sheet_of_maps_on_one_scale(repositories, photo, family, tmp_path, capsys):
    picture = tmp_path / "out.png"
    assert run("where", photo, *TEXTS, "--model", repositories[family], "--plot", picture, "--boxes") == 0
    out, err = capsys.readouterr()
    assert out.startswith("a cat: ")
    assert "boxes: " in out
    assert f"drawn: {picture}" in err
    with Image.open(picture) as image:
        assert image.width == pytest.approx(150 * (3 * 2.8 + 0.8), abs=1)
        assert len(image.getcolors(image.width * image.height)) > 500
    assert not left_behind(tmp_path)


def test_a_stock_folder_works(folders, photo, capsys):
    for method in ("dense", "windows"):
        assert run("where", photo, *TEXTS, "--model", folders["transformers"], "--method", method, "--whole") == 0
        assert capsys.readouterr().out.startswith("a cat: ")


@pytest.mark.parametrize("size", [(4, 4), (3_000, 2_000), (900, 40), (40, 900)])
def test_sheets_of_any_image(repositories, size, tmp_path):
    """Long texts are wrapped, not cut by the edge of the sheet or by the next one."""
    Image.new("RGB", size, "orange").save(tmp_path / "in.png")
    texts = ["a text of many words that goes on for more than one line, and then for yet another one " * 2, "cat" * 30]
    options = ["--model", repositories["tiny ViT"], "--plot", tmp_path / "out.png"]
    assert run("where", tmp_path / "in.png", *[text[:150] for text in texts], *options) == 0
    with Image.open(tmp_path / "out.png") as image:
        assert max(image.size) < 3_000
        edge = np.asarray(image.convert("L"))
        assert min(edge[0].min(), edge[-1].min(), edge[:, 0].min(), edge[:, -1].min()) == 255


def test_attention_of_layers_and_heads(repositories, photo, family, tmp_path, capsys):
    layers = "0" if "ResNet" in family else "0,-1"
    options = ["--method", "attention", "--layers", layers, "--heads", "0", "--plot", tmp_path / "out.png", "--whole"]
    assert run("where", photo, "--model", repositories[family], *options) == 0
    titles = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert titles == [f"layer {layer}, head 0" for layer in layers.split(",")]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "there are no texts: give some, or --method attention"),
        (["a cat", "--method", "attention"], "attention takes no texts"),
        (["--method", "attention", "--layers", "a"], "'a' is not a list of whole numbers"),
        (["--method", "attention", "--layers", "9"], "there is no layer 9: choose from -1 to 0"),
        (["a cat", "--output", "maps.txt"], "should end in .npz"),
        (["a cat", "--plot", "maps.xyz"], "should end in"),
        (["a cat", "--boxes", "--threshold", "2"], "threshold is 2"),
        (["a cat", "--threshold", "0.4"], "--threshold 0.4 applies to boxes alone: add --boxes"),
    ],
)
def test_bad_arguments_are_named(repositories, photo, arguments, problem, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("where", photo, "--model", repositories["tiny ResNet"], *arguments) == 1
    assert problem in capsys.readouterr().err


def test_an_existing_output_is_kept(repositories, photo, capsys, tmp_path):
    (tmp_path / "maps.npz").write_text("mine")
    options = ["--model", repositories["tiny ViT"], "--output", tmp_path / "maps.npz"]
    assert run("where", photo, "a cat", *options) == 1
    assert "exists: choose another output" in capsys.readouterr().err
    assert run("where", photo.with_name("broken.png"), "a cat", *options, "--force") == 1
    assert "broken.png: it is no image" in capsys.readouterr().err
    assert (tmp_path / "maps.npz").read_text() == "mine"
