"""Copies of OpenAI's weights on the Hub are recognized by their values."""

import json

import pytest
import torch
from safetensors.torch import save_file
from support.local_hub import File, LocalHub, Repository
from support.originals import original_model

from conversion.record_digests import record_weights
from hf_clip import HFCLIPModel
from hf_clip.openai import weights as module
from hf_clip.openai.checkpoints import read_checkpoint
from hf_clip.openai.convert import convert
from hf_clip.openai.download import cached_file
from hf_clip.openai.published import CHECKPOINTS, Checkpoint, CheckpointLayout
from hf_clip.openai.to_openai import to_openai
from hf_clip.openai.weights import recorded_digests, values_digest
from hf_clip.utils.files import file_sha256


@pytest.fixture
def recorded(archives, family, tmp_path, monkeypatch):
    """One of the nine is the tiny archive, whose digest was recorded from the cache."""
    name = "ViT-B/32" if family == "tiny ViT" else "RN50"
    row, sha256 = CHECKPOINTS[name], file_sha256(archives[family])
    monkeypatch.setitem(CHECKPOINTS, name, Checkpoint(name, row.url, sha256, row.repo_name))
    monkeypatch.setattr(module, "RECORDED_WEIGHTS", tmp_path / "weights.json")
    monkeypatch.setattr("conversion.record_digests.RECORDED_WEIGHTS", tmp_path / "weights.json")
    (tmp_path / "weights.json").write_text("{}")
    cached_file(CHECKPOINTS[name], tmp_path / "cache").parent.mkdir()
    cached_file(CHECKPOINTS[name], tmp_path / "cache").write_bytes(archives[family].read_bytes())
    assert record_weights(tmp_path / "cache") == [name]
    return CHECKPOINTS[name]


def serve(hub, monkeypatch, checkpoint, folder):
    hub.use_in_process(monkeypatch)
    repository = hub.repositories.setdefault(checkpoint.mirror.removeprefix("hf-hub:"), Repository(private=False))
    repository.add("main", "add", {path.name: File.of(path.read_bytes()) for path in folder.iterdir()})


def copy_of(repository, folder, change=0.0):
    """Write a folder of open_clip, in float32 as the copies on the Hub are."""
    to_openai(repository, folder, CheckpointLayout.open_clip, report=lambda _: None)
    tensors = {key: tensor.float() for key, tensor in read_checkpoint(folder / "open_clip_model.safetensors").items()}
    tensors["logit_scale"] += change
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def test_a_copy_is_recognized_and_converts(recorded, repositories, family, tmp_path, monkeypatch):
    said = []
    with LocalHub() as hub:
        serve(hub, monkeypatch, recorded, copy_of(repositories[family], tmp_path / "copy"))
        convert(recorded.mirror, tmp_path / "out", cache_dir=tmp_path / "hub", report=said.append)
    assert f"{recorded.mirror} holds the weights of OpenAI's {recorded.name}, bit for bit" in said
    assert not any("assuming" in sentence for sentence in said)
    ours, expected = (HFCLIPModel.from_pretrained(path) for path in (tmp_path / "out", repositories[family]))
    assert ours.config.to_dict() | {"_name_or_path": ""} == expected.config.to_dict() | {"_name_or_path": ""}
    assert all(
        torch.equal(a, b) for a, b in zip(ours.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_another_s_weights_are_told(recorded, repositories, family, tmp_path, monkeypatch):
    said = []
    with LocalHub() as hub:
        serve(hub, monkeypatch, recorded, copy_of(repositories[family], tmp_path / "copy", change=1e-3))
        convert(recorded.mirror, tmp_path / "out", cache_dir=tmp_path / "hub", report=said.append)
    assert f"{recorded.mirror} does not hold the weights of OpenAI's {recorded.name}: their values differ" in said
    assert any("none of the nine published files: assuming" in sentence for sentence in said)


def test_dtypes_and_counters_do_not_count(family):
    state = original_model(family).half().state_dict()
    digest = values_digest(state)
    assert digest == values_digest({key: tensor.float() for key, tensor in state.items() if "num_batches" not in key})
    for key in ("visual.conv1.weight", "logit_scale"):
        assert digest != values_digest(state | {key: state[key] * 2})
    assert digest != values_digest({key: tensor for key, tensor in state.items() if key != "logit_scale"})


def test_the_record_names_some_of_the_nine():
    assert recorded_digests().keys() <= CHECKPOINTS.keys()
    assert json.loads(module.RECORDED_WEIGHTS.read_text()) == recorded_digests()
