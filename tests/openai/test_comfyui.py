"""Text towers as ComfyUI and Forge read them."""

import pytest
import torch
from safetensors.torch import load_file
from support.commands import run
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from hf_clip import HFCLIPModel, HFCLIPTextModelWithProjection
from hf_clip.openai.comfyui import COMFYUI_ENCODERS, Encoder

# the parameters of CLIPTextModel in ComfyUI's comfy/clip_model.py
LAYER_PARTS = [
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
]


def comfyui_keys(layers):
    blocks = [f"text_model.encoder.layers.{n}.{part}" for n in range(layers) for part in LAYER_PARTS]
    return {
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_projection.weight",
        *(f"{module}.{kind}" for module in [*blocks, "text_model.final_layer_norm"] for kind in ("weight", "bias")),
    }


def test_a_text_tower_comes_back(repositories, family, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(COMFYUI_ENCODERS, "clip_l", Encoder(2, 64, 1, "quick_gelu"))
    output = tmp_path / "new" / "clip_l.safetensors"
    assert run("to-openai", repositories[family], "--output", output, "--layout", "comfyui") == 0
    assert "into ComfyUI/models/text_encoders" in capsys.readouterr().out
    stored, before = load_file(output), load_file(repositories[family] / "model.safetensors")
    assert stored.keys() == comfyui_keys(2)
    assert all(torch.equal(tensor, before[key]) and tensor.dtype == before[key].dtype for key, tensor in stored.items())

    # the names and the square projection are those of transformers' class, which computes what ComfyUI's does
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    theirs = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, projection_dim=64, eos_token_id=49407)).eval()
    theirs.load_state_dict(stored)
    ours = HFCLIPTextModelWithProjection.from_pretrained(repositories[family]).eval()
    ids = torch.tensor([[49406, 320, 1125, 49407]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).text_embeds, ours(ids).text_embeds, rtol=0, atol=1e-6)


def test_encoders_that_comfyui_does_not_have(repositories, family, tmp_path, capsys):
    output = tmp_path / "clip.safetensors"
    assert run("to-openai", repositories[family], "--output", output, "--layout", "comfyui") == 1
    error = capsys.readouterr().err
    assert "ComfyUI has no text encoder with 2 layers, 64 wide, 1 heads, quick_gelu" in error
    assert "clip_l, clip_h, clip_g" in error
    assert not output.exists()


def test_the_file_is_safetensors(repositories, family, tmp_path, capsys):
    assert run("to-openai", repositories[family], "--output", tmp_path / "x.pt", "--layout", "comfyui") == 1
    assert "should end in .safetensors" in capsys.readouterr().err


def test_a_model_that_is_not_whole(repositories, family, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(COMFYUI_ENCODERS, "clip_l", Encoder(3, 64, 1, "quick_gelu"))
    model = HFCLIPModel.from_pretrained(repositories[family])
    model.config.text_config.num_hidden_layers = 3
    model.save_pretrained(tmp_path / "deep")
    output = tmp_path / "x.safetensors"
    assert run("to-openai", tmp_path / "deep", "--output", output, "--layout", "comfyui") == 1
    assert "missing text_model.encoder.layers.2" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("clip_l", (12, 768, 12, "quick_gelu")), ("clip_h", (24, 1024, 16, "gelu")), ("clip_g", (32, 1280, 20, "gelu"))],
)
def test_the_encoders_are_open_clip_s_text_towers(name, sizes):
    import open_clip

    known = {"clip_l": "ViT-L-14-quickgelu", "clip_h": "ViT-H-14", "clip_g": "ViT-bigG-14"}
    config = open_clip.get_model_config(known[name])
    text = config["text_cfg"]
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    assert (
        Encoder(text["layers"], text["width"], text["heads"], activation) == COMFYUI_ENCODERS[name] == Encoder(*sizes)
    )
    assert config["embed_dim"] == text["width"]
