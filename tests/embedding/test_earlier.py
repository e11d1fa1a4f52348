"""Outputs of version 0.2, finished and interrupted, are continued: earlier/ was written by its code."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.commands import run
from support.photos import read

from examples.train_shapes import CHECKPOINTS
from hf_clip.embedding import images
from hf_clip.embedding.parts import iter_parts
from hf_clip.openai.convert import convert
from hf_clip.utils.places import place_at

EARLIER = Path(__file__).parent / "earlier"
NAMES = ["0.png", "b/1.png", "c d.png", "ä.png"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("earlier") / "clip"
    convert(str(CHECKPOINTS["vit"]), folder, report=lambda _: None)
    return folder


@pytest.fixture
def earlier(tmp_path) -> Path:
    """A copy, whose images have the times that the outputs know."""
    folder = shutil.copytree(EARLIER, tmp_path / "earlier")
    for seed, name in enumerate([*NAMES, "broken.png"]):
        time = 10**18 + seed % len(NAMES)
        os.utime(folder / "photos" / name, ns=(time, time))
    return folder


@pytest.fixture
def embedded(monkeypatch) -> list[str]:
    """The names of images that go through the model."""
    names, real = [], images.image_features

    def record(*arguments, **options):
        for items, embeds in real(*arguments, **options):
            names.extend(getattr(item, "name", "the probe") for item in items)
            yield items, embeds

    monkeypatch.setattr(images, "image_features", record)
    return names


def embed(folder: Path, output: str, model: Path, *options: str) -> int:
    return run("embed", folder / "photos", "-o", folder / output, "-m", model, "--batch-size", 2, *options)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_a_finished_file_has_nothing_new(suffix, earlier, model, embedded, capsys):
    before = (earlier / f"whole{suffix}").read_bytes()
    assert embed(earlier, f"whole{suffix}", model) == 0
    assert embedded == ["the probe"]
    assert "0 new embeddings of 16 dimensions, 4 images of earlier runs" in capsys.readouterr().out
    assert (earlier / f"whole{suffix}").read_bytes() == before


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_a_new_file_is_the_old_one(suffix, earlier, model):
    """Same images, same options: the same embeddings up to rounding, and the same list of images to the byte."""
    assert embed(earlier, f"again{suffix}", model) == 0
    found, expected = read(earlier / f"again{suffix}"), read(earlier / f"whole{suffix}")
    assert list(found) == list(expected) == NAMES
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=1e-6)
    lists = [(earlier / f"{name}{suffix}.index.jsonl").read_text().splitlines()[1:] for name in ("again", "whole")]
    assert lists[0] == lists[1]


def test_an_interrupted_file_is_continued(earlier, model, embedded, capsys):
    assert embed(earlier, "torn.npy", model) == 0
    assert embedded == ["the probe", *NAMES[2:]]
    assert "going on: 2 of 5 images are embedded already" in capsys.readouterr().err
    assert np.array_equal(np.load(earlier / "torn.npy")[:2], np.load(earlier / "whole.npy")[:2])
    np.testing.assert_allclose(np.load(earlier / "torn.npy"), np.load(earlier / "whole.npy"), rtol=0, atol=1e-6)
    assert not list(earlier.glob("torn.npy.partial*"))


@pytest.mark.parametrize(("output", "new"), [("parts", []), ("torn-parts", NAMES[2:])])
def test_a_directory_is_continued(output, new, earlier, model, embedded):
    assert embed(earlier, output, model, "--part-rows", "2") == 0
    assert embedded == ["the probe", *new]
    held = {
        path: row
        for columns, rows in iter_parts(place_at(str(earlier / output)))
        for path, row in zip(columns["path"].to_pylist(), rows, strict=True)
    }
    expected = read(earlier / "whole.npy")
    assert held.keys() == expected.keys()
    np.testing.assert_allclose([held[name] for name in NAMES], list(expected.values()), rtol=0, atol=1e-6)
