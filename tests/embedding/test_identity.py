"""A model is known by the embeddings of one fixed text and one fixed image."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from hf_clip.embedding.identity import fingerprint, image_probe, same_model, store_settings, text_probe
from hf_clip.openai.published import CHECKPOINTS


@pytest.fixture
def clip(repositories, family):
    folder = repositories[family]
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize(("probe", "tower"), [(text_probe, "text"), (image_probe, "vision")], ids=["text", "image"])
def test_a_probe_tells_a_changed_model_from_the_same(clip, probe, tower):
    model, processor = clip
    known = probe(model, processor)
    assert same_model(probe(model, processor), known, same_precision=True)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for weight in getattr(tuned, f"{tower}_model").parameters():
            if weight.ndim > 1:
                weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert not same_model(probe(tuned, processor), known, same_precision=True)
    assert not same_model(known[..., :-1], known, same_precision=False)


def test_settings_of_a_store_hold_the_image_probe(clip):
    model, processor = clip
    settings = store_settings(model, processor, "float32", True)
    assert list(settings) == ["model", "dtype", "normalize", "dim", "probe"]
    assert settings["probe"] == image_probe(model, processor).tolist()
    assert settings["dim"] == len(settings["probe"])


def test_a_fingerprint_changes_with_any_file_of_a_folder_or_of_a_cached_repository(tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    known = fingerprint(str(tmp_path))
    assert fingerprint(str(tmp_path)) == known
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    assert fingerprint("openai/clip") == known
    (tmp_path / "model.safetensors").write_text("other weights")
    assert fingerprint("openai/clip") == fingerprint(str(tmp_path)) != known
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert fingerprint("openai/clip") is None


def test_a_fingerprint_of_a_file_and_of_a_published_name(tmp_path):
    file = tmp_path / "model.pt"
    file.write_text("weights")
    known = fingerprint(str(file))
    (tmp_path / "beside.txt").touch()
    assert fingerprint(str(file)) == known
    file.write_text("other weights")
    assert fingerprint(str(file)) != known
    for name, checkpoint in CHECKPOINTS.items():
        assert fingerprint(name) == checkpoint.sha256
