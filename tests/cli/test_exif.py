"""Every verb that reads images, and photos that a phone has turned: ignored and said, or turned when asked."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from support.commands import run
from support.embeddings import kept_rows
from support.image_corpus import EXIF_ORIENTATION
from transformers.utils.logging import warning_once

from hf_clip import HFCLIPProcessor
from hf_clip.evaluation import tasks
from hf_clip.export.engine import _calibration

FOLDERS = ("turned", "upright")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Photos of two classes stored on their side, with the orientation that turns them; and upright copies."""
    root, exif = tmp_path_factory.mktemp("exif"), Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    for number, name in enumerate(("a/0", "a/1", "b/0", "b/1")):
        paths = {folder: root / folder / name for folder in FOLDERS}
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (6, 10, 3), np.uint8)
        photo = Image.fromarray(pixels).resize((70, 40), Image.Resampling.BICUBIC)
        photo.save(paths["turned"].with_suffix(".jpg"), exif=exif)
        with Image.open(paths["turned"].with_suffix(".jpg")) as stored:
            upright = stored.transpose(Image.Transpose.ROTATE_270)
        Image.fromarray(np.asarray(upright)).save(paths["upright"].with_suffix(".png"))
    for folder in FOLDERS:
        names = sorted(path.relative_to(root / folder) for path in (root / folder).rglob("*.*"))
        (root / f"{folder}.csv").write_text(
            "\n".join(["path,text", *(f"{folder}/{name},{name.parent}" for name in names)])
        )
    return root


def stored_rows(output: Path) -> np.ndarray:
    [file] = (output / "store").glob("*.npy")
    return np.load(file)


def printed(_: Path, out: str) -> list[float]:
    """Read the numbers of lines of JSON."""
    lines = list(map(json.loads, out.splitlines()))
    return [answer["score"] for line in lines for answer in sorted(line["labels"], key=lambda one: one["label"])]


def evaluated(*verb: str) -> Callable[[Path, Path], list[Any]]:
    def arguments(data: Path, output: Path) -> list[Any]:
        source = data.with_suffix(".csv") if "retrieval" in verb else data
        return ["evaluate", *verb, *[source] * (2 if "probe" in verb else 1), "--store", output / "store"]

    return arguments


def finetuned(data: Path, output: Path) -> list[Any]:
    steps = ("--epochs", 1, "--batch-size", 4, "--workers", 0, "--lr", "1e-3")
    return ["finetune", data, "--output", output / "tuned", *steps]


def trained(output: Path, _: str) -> np.ndarray:
    return load_file(output / "tuned/model.safetensors")["visual_projection.weight"]


# of each verb: the command for a folder, and what its pixels decide of the result
VERBS: dict[str, tuple[Callable[[Path, Path], list[Any]], Callable[[Path, str], Any]]] = {
    "classify": (lambda data, _: ["classify", data, "--labels", "a cat,a dog", "--json"], printed),
    "embed": (
        lambda data, output: ["embed", data, "--output", output / "out.npy"],
        lambda output, _: np.load(output / "out.npy"),
    ),
    "where": (
        lambda data, output: ["where", next(data.glob("a/0.*")), "a cat", "--output", output / "maps.npz"],
        lambda output, _: np.load(output / "maps.npz")["maps"],
    ),
    "evaluate zero-shot": (evaluated("zero-shot"), lambda output, _: stored_rows(output)),
    "evaluate retrieval": (evaluated("retrieval"), lambda output, _: stored_rows(output)),
    "evaluate probe": (evaluated("probe", "--C", "1"), lambda output, _: stored_rows(output)),
    "finetune": (finetuned, trained),
    "calibrate": (
        lambda data, output: ["calibrate", data, "--output", output / "saved.safetensors"],
        lambda output, _: load_file(output / "saved.safetensors")["conformal_scores"],
    ),
    "few-shot": (
        lambda data, output: [
            *("few-shot", data, "--head", "prototypes"),
            *("--output", output / "saved.safetensors", "--store", output / "store"),
        ],
        lambda output, _: stored_rows(output),
    ),
    "suspects": (
        lambda data, output: ["suspects", data, "--output", output / "found.csv", "--store", output / "store"],
        lambda output, _: stored_rows(output),
    ),
    "filter": (
        lambda data, output: ["filter", data.with_suffix(".csv"), "--output", output / "kept", "--top", 1],
        lambda output, _: [row["clip_score"] for _, row in sorted(kept_rows(output / "kept").items())],
    ),
    "dedup": (
        lambda data, output: ["dedup", data, "--output", output / "kept", "--embeddings", output / "embeds"],
        lambda output, _: [row["embedding"] for _, row in sorted(kept_rows(output / "embeds").items())],
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_turned_photo(verb, data, repositories, tmp_path, capsys, caplog):
    arguments, result = VERBS[verb]
    found, said = {}, {}
    for folder, exif in (("turned", "ignore"), ("turned", "apply"), ("upright", "ignore")):
        output = tmp_path / f"{folder}-{exif}"
        output.mkdir()
        caplog.clear()
        warning_once.cache_clear()
        options = ["--model", repositories["tiny ViT"], *(["--exif", exif] if exif == "apply" else [])]
        assert run(*arguments(data / folder, output), *options) == 0
        out, err = capsys.readouterr()
        found[folder, exif] = np.asarray(result(output, out))
        said[folder, exif] = (err + caplog.text).count("carry a rotation, which is ignored: --exif apply turns them")
    np.testing.assert_array_equal(found["turned", "apply"], found["upright", "ignore"])
    assert not np.array_equal(found["turned", "ignore"], found["turned", "apply"], equal_nan=True)
    assert said == {key: int(key == ("turned", "ignore")) for key in said}


def test_a_sweep_and_a_calibration_read_photos_as_asked(data, repositories, tmp_path, monkeypatch, caplog):
    """`merge --sweep`, whose accuracy on few photos tells little, and the images that `export --calibrate` reads."""
    base, found, read = repositories["tiny ViT"], {}, tasks.readable_image_embeds
    processor, embeds = HFCLIPProcessor.from_pretrained(base), []

    def remembered(*arguments, **options):
        rows, found = read(*arguments, **options)
        embeds.append(found.numpy())
        return rows, found

    monkeypatch.setattr(tasks, "readable_image_embeds", remembered)
    for folder, exif in (("turned", "ignore"), ("turned", "apply"), ("upright", "ignore")):
        output = ["--output", tmp_path / f"{folder}-{exif}", "--sweep", "1:1:1", "--exif", exif]
        caplog.clear()
        warning_once.cache_clear()
        assert run("merge", base, base, "--eval", data / folder, *output) == 0
        found[folder, exif] = [embeds[-1], _calibration(data / folder, processor, exif)]
        assert caplog.text.count("carry a rotation, which is ignored") == 2 * ((folder, exif) == ("turned", "ignore"))
    turned, upright, ignored = (
        found[key] for key in (("turned", "apply"), ("upright", "ignore"), ("turned", "ignore"))
    )
    for place in range(2):
        np.testing.assert_array_equal(turned[place], upright[place])
        assert not np.array_equal(turned[place], ignored[place])


@pytest.mark.parametrize("verb", ["calibrate", "few-shot"])
def test_a_classifier_takes_images_that_are_read_as_those_it_learned_from(verb, data, repositories, tmp_path, capsys):
    model = ["--model", repositories["tiny ViT"]]
    arguments, _ = VERBS[verb]
    assert run(*arguments(data / "turned", tmp_path), *model, "--exif", "apply") == 0
    classify = ["classify", data / "turned", "--labels", tmp_path / "saved.safetensors", *model]
    capsys.readouterr()
    assert run(*classify) == 1
    assert "learned from images read with exif apply, not ignore: pass" in capsys.readouterr().err
    assert run(*classify, "--exif", "apply") == 0


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_a_query_and_its_sheet_follow_the_index(exif, data, repositories, tmp_path, capsys, caplog):
    pytest.importorskip("pyarrow")
    model = ["--model", repositories["tiny ViT"]]
    assert run("embed", data / "turned", "--output", tmp_path / "out.npy", "--exif", exif, *model) == 0
    assert run("index", tmp_path / "out.npy", "--output", tmp_path / "index") == 0
    capsys.readouterr()
    caplog.clear()
    query = data / "turned/a/0.jpg"
    options = ["--json", "-k", 4, "--html", tmp_path / "found.html"]
    assert run("search", tmp_path / "index", "--image", query, *options) == 0
    best = json.loads(capsys.readouterr().out.splitlines()[0])
    assert best["path"] == "a/0.jpg"
    assert best["score"] == pytest.approx(1, abs=1e-5)
    assert ("which is ignored: it is in the index, too" in caplog.text) is (exif == "ignore")
    encoded = (tmp_path / "found.html").read_text().partition("base64,")[2].partition('"')[0]
    width, height = Image.open(io.BytesIO(base64.b64decode(encoded))).size
    assert (width < height) is (exif == "apply")


def test_an_index_of_turned_images_takes_no_others(data, repositories, tmp_path):
    """A new index replaces one whose images were read in another way, and keeps no row of it."""
    pytest.importorskip("pyarrow")
    for exif in ("ignore", "apply"):
        output = ["--output", tmp_path / f"{exif}.npy", "--exif", exif, "--model", repositories["tiny ViT"]]
        assert run("embed", data / "turned", *output) == 0
        assert run("index", tmp_path / f"{exif}.npy", "--output", tmp_path / "index") == 0
    settings = json.loads((tmp_path / "index/settings.json").read_text())
    assert (settings["exif"], settings["inserted"]) == ("apply", 4)


def test_figures_show_what_the_model_reads(data, repositories, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from hf_clip.plots import scores

    seen, thumbnail = [], scores._thumbnail
    monkeypatch.setattr(scores, "_thumbnail", lambda *read: seen.append(thumbnail(*read)) or seen[-1])
    options = ["--labels", "a,b", "--model", repositories["tiny ViT"], "--plot", tmp_path / "out.png", "--force"]
    for exif in ("ignore", "apply"):
        assert run("classify", data / "turned/a/0.jpg", *options, "--exif", exif) == 0
    assert [picture.size for picture in seen] == [(70, 40), (40, 70)]


def test_a_resumed_result_is_read_in_the_same_way(data, repositories, tmp_path, capsys):
    output = ["--output", tmp_path / "out.json", "--model", repositories["tiny ViT"]]
    assert run("evaluate", "zero-shot", data / "turned", *output) == 0
    assert run("evaluate", "zero-shot", data / "turned", *output, "--resume", "--exif", "apply") == 1
    assert "was measured with exif ignore, not apply" in capsys.readouterr().err
