import os

import pytest
import torch
from safetensors.torch import load_file
from support.commands import run
from support.originals import FAMILIES, inputs, load_original, original_model
from transformers import CLIPModel

from hf_clip import HFCLIPModel
from hf_clip.openai.checkpoints import read_checkpoint
from hf_clip.openai.convert import Layout, convert
from hf_clip.openai.errors import CheckpointError
from hf_clip.openai.to_openai import to_openai


def assert_same(state_dict, expected):
    assert state_dict.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(state_dict[key], tensor), key
        assert state_dict[key].dtype == tensor.dtype, key


def test_convert_and_export_give_the_archive_back(archives, repositories, family, tmp_path):
    """Every tensor and dtype, the three sizes included; and the original loads it as it loads the archive."""
    to_openai(repositories[family], tmp_path / "back.pt")
    assert_same(torch.load(tmp_path / "back.pt"), dict(read_checkpoint(archives[family])))
    assert_same(load_original(tmp_path / "back.pt").state_dict(), load_original(archives[family]).state_dict())


def test_a_trained_model_is_exported(repositories, family, tmp_path):
    model = HFCLIPModel.from_pretrained(repositories[family]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "tuned", max_shard_size="1MB")
    assert (tmp_path / "tuned" / "model.safetensors.index.json").exists()
    to_openai(tmp_path / "tuned", tmp_path / "tuned.pt")
    original = load_original(tmp_path / "tuned.pt")
    # the original rounds to its fp16 mix as it loads
    assert original.visual.conv1.weight.shape == original_model(family).visual.conv1.weight.shape
    exported = torch.load(tmp_path / "tuned.pt")
    assert torch.equal(exported["positional_embedding"], model.text_model.embeddings.position_embedding.weight)
    assert exported["text_projection"].dtype == torch.float32


def test_stock_folders_are_exported(archives, tmp_path):
    archive = archives[FAMILIES[0]]
    convert(str(archive), tmp_path / "stock", layout=Layout.transformers)
    CLIPModel.from_pretrained(tmp_path / "stock").save_pretrained(tmp_path / "resaved")
    to_openai(tmp_path / "resaved", tmp_path / "back.pt")
    original, exported = load_original(archive), load_original(tmp_path / "back.pt")
    pixels, ids = inputs(original_model(FAMILIES[0]))
    with torch.no_grad():
        assert torch.equal(original(pixels, ids)[0], exported(pixels, ids)[0])


def test_bad_folders(repositories, family, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("to-openai", tmp_path / "empty", "--output", tmp_path / "out.pt") == 1
    assert "no converted folder: it has no config.json" in capsys.readouterr().err

    model = HFCLIPModel.from_pretrained(repositories[family])
    model.save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run("to-openai", tmp_path / "cut", "--output", tmp_path / "out.pt") == 1
    assert "cannot be read as safetensors" in capsys.readouterr().err

    model.config.text_config.num_hidden_layers = 3
    model.save_pretrained(tmp_path / "deep")
    with pytest.raises(CheckpointError, match=r"deep.*missing text_model\.encoder\.layers\.2"):
        to_openai(tmp_path / "deep", tmp_path / "out.pt")
    assert "out.pt" not in os.listdir(tmp_path)


def test_existing_output(repositories, family, tmp_path, capsys):
    output = tmp_path / "out.pt"
    output.write_text("mine")
    assert run("to-openai", repositories[family], "--output", output) == 1
    assert "pass --force" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert run("to-openai", repositories[family], "--output", output, "--force") == 0
    assert load_file(repositories[family] / "model.safetensors").keys()
    assert "logit_scale" in torch.load(output)
    assert os.listdir(tmp_path) == ["out.pt"]
