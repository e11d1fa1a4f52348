"""clip_benchmark and webdataset read the same files as we, and find the same numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.data_sets import png, wds_folder
from support.photos import load

from examples.shapes import COLORS, SHAPES, draw
from examples.train_shapes import CHECKPOINTS
from hf_clip.data.wds import read_wds
from hf_clip.evaluation import retrieval, zero_shot
from hf_clip.evaluation.clip_benchmark import run_clip_benchmark
from hf_clip.openai.convert import convert

pytestmark = pytest.mark.integration
pytest.importorskip("clip_benchmark")
KINDS = ("png", "jpeg", "webp")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Colored shapes with labels, and with three captions each."""
    folder, rng = tmp_path_factory.mktemp("wds"), np.random.default_rng(0)
    labeled = [
        {KINDS[number % 3]: png(draw(None, shape, rng), KINDS[number % 3]), "cls": str(place).encode()}
        for number in range(9)
        for place, shape in enumerate(SHAPES)
    ]
    templates = ["{c}", "a photo of a {c}."]
    wds_folder(
        folder, "shapes", labeled, shards=12, classnames=list(SHAPES), zeroshot_classification_templates=templates
    )
    captioned = [
        {"jpg": png(draw(color, shape, rng), "jpeg"), "txt": f"{color} {shape}\na {color} {shape}\n{shape} in {color}"}
        for color in COLORS
        for shape in SHAPES
    ]
    captioned = [{**sample, "txt": sample["txt"].encode()} for sample in captioned]
    wds_folder(folder, "pairs", captioned, shards=2, dataset_type=["retrieval"])
    return folder


@pytest.fixture(scope="module", params=["vit", "resnet"])
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / request.param
    convert(str(CHECKPOINTS[request.param]), folder, report=lambda _: None)
    return folder


@pytest.mark.parametrize(("dataset", "task"), [("shapes", "zeroshot_classification"), ("pairs", "zeroshot_retrieval")])
def test_the_adapter_finds_our_numbers(root, folder, dataset, task, tmp_path, monkeypatch):
    output = tmp_path / "out.json"
    arguments = ["eval", "--model_type", "hf_clip", "--model", "any", "--pretrained", str(folder), "--no_amp"]
    arguments += ["--dataset", f"wds/{dataset}", "--dataset_root", f"{root}/wds_{dataset}", "--num_workers", "0"]
    arguments += ["--task", task, "--recall_k", "1", "5", "10", "--output", str(output), "--batch_size", "16"]
    monkeypatch.setattr("sys.argv", ["clip_benchmark", *arguments])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run_clip_benchmark()
    theirs = json.loads(output.read_text())
    evaluate = zero_shot if dataset == "shapes" else retrieval
    ours = evaluate(*load(folder), read_wds(root / f"wds_{dataset}")).to_json()
    assert theirs["task"] == ours["task"] == task
    shared = theirs["metrics"].keys() & ours["metrics"].keys()
    assert len(shared) == (3 if dataset == "shapes" else 6)
    for name in shared:
        # their recalls are means in single precision
        tolerance = 1e-9 if dataset == "shapes" else 1e-7
        assert ours["metrics"][name] == pytest.approx(theirs["metrics"][name], abs=tolerance), name
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= theirs.keys() & ours.keys()


@pytest.mark.parametrize("dataset", ["shapes", "pairs"])
def test_our_reader_reads_what_webdataset_reads(root, dataset):
    import webdataset

    folder = root / f"wds_{dataset}" / "test"
    count = int((folder / "nshards.txt").read_text())
    samples = webdataset.WebDataset(f"{folder}/{{0..{count - 1}}}.tar", shardshuffle=False).decode("pil")
    rows = read_wds(root / f"wds_{dataset}")
    found = list(samples)
    assert len(found) == len(rows)
    for sample, row in zip(found, rows, strict=True):
        image = next(sample[kind] for kind in ("png", "jpg", "jpeg", "webp") if kind in sample)
        assert np.array_equal(np.array(image), np.array(row.open().convert("RGB")))
        assert sample.get("cls") == row.label
        assert tuple(sample.get("txt", "").splitlines()) == row.texts
