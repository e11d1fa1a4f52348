"""Every verb beside every kind of file and folder: it works, or one sentence names what to do instead."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support.commands import run

from hf_clip import HFCLIPForImageClassification, HFCLIPModel
from hf_clip.cli.sources import KINDS, kind_of
from hf_clip.exported.manifest import Manifest

MODEL = ("model", "checkpoint", "exported")
# the command of each verb, K where the source stands, and the kinds that it takes
VERBS = {
    "classify": ("classify images -l a,b -m K", MODEL),
    "embed": ("embed images -o out.npy -m K", MODEL),
    "where": ("where images/ball/0.png ball -m K", ("model", "checkpoint")),
    "evaluate": ("evaluate zero-shot images -m K", MODEL),
    "suspects": ("suspects images -m K -o out.csv", MODEL),
    "few-shot": ("few-shot images -m K -o out.safetensors", MODEL),
    "finetune": ("finetune images -m K -o out", ("model", "checkpoint")),
    "merge, the base": ("merge K model -o out", ("model", "checkpoint")),
    "merge, the fine-tune": ("merge model K -o out", ("model", "checkpoint", "adapter")),
    "export": ("export K -o out", ("model", "checkpoint")),
    "convert": ("convert K -o out", ("checkpoint", "timm")),
    "to-openai": ("to-openai K -o out.pt", ("model",)),
    "verify": ("verify K", ("model", "exported")),
    "index": ("index K -o out", ("embeddings",)),
    "search": ("search K ball", ("index",)),
    "duplicates": ("duplicates K", ("index",)),
    "filter": ("filter K -o out --top 0.5", ("embeddings",)),
    "dedup": ("dedup K -o out", ("embeddings",)),
}
PATHS = {kind: kind for kind in KINDS} | {"checkpoint": "checkpoint.pt"}


@pytest.fixture(scope="module")
def places(repositories, archives, tmp_path_factory) -> Path:
    """A folder with one file or folder of each kind, made as small as tells the kind."""
    root = tmp_path_factory.mktemp("kinds")
    [family, *_] = repositories
    (root / "model").symlink_to(repositories[family])
    (root / "checkpoint.pt").symlink_to(archives[family])
    (root / "images" / "ball").mkdir(parents=True)
    Image.radial_gradient("L").convert("RGB").save(root / "images" / "ball" / "0.png")
    model = HFCLIPModel.from_pretrained(repositories[family])
    model.text_model.config.save_pretrained(root / "tower")
    HFCLIPForImageClassification(model.config).config.save_pretrained(root / "classifier")
    config = json.loads((root / "classifier" / "config.json").read_text())
    config["architectures"] = ["HFCLIPForImageClassification"]
    (root / "classifier" / "config.json").write_text(json.dumps(config))
    (root / "timm").mkdir()
    (root / "timm" / "config.json").write_text('{"architecture": "resnet50_clip"}')
    for file in ("adapter/adapter_config.json", "embeddings/_hf_clip.json", "index/settings.json"):
        (root / file).parent.mkdir()
        (root / file).write_text("{}")
    (root / "exported").mkdir()
    towers = {"vision_config": {"image_size": 224}, "text_config": {"max_position_embeddings": 77}}
    config = {**towers, "projection_dim": 1024}
    Manifest("onnx", "plain", {}, "", "", 4.6, "clip-rn50", config).write(root / "exported")
    return root


def test_every_kind_is_told_by_its_files(places):
    assert {kind: kind_of(places / path) for kind, path in PATHS.items()} == {kind: kind for kind in KINDS}
    for other in ("images", "nowhere", "images/ball/0.png"):
        assert kind_of(places / other) is None
    assert kind_of("openai/clip-vit-base-patch32") is None


@pytest.mark.parametrize(
    ("verb", "kind"), [(verb, kind) for verb, (_, takes) in VERBS.items() for kind in KINDS if kind not in takes]
)
def test_another_kind_is_refused_with_what_to_do(verb, kind, places, monkeypatch, capsys):
    monkeypatch.chdir(places)
    before = sorted(places.iterdir())
    command = [PATHS[kind] if word == "K" else word for word in VERBS[verb][0].split()]
    assert run(*command) == 1
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"error: {PATHS[kind]} is {KINDS[kind][0]}: ")
    assert "{" not in sentence
    assert "clip-rn50" in sentence or kind != "exported" or "hf-clip embed" in sentence
    assert sorted(places.iterdir()) == before
