"""The text tower in NumPy gives the model's embeddings, and refuses files that are none."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.originals import FAMILIES
from support.photos import load

from hf_clip import HFCLIPTextConfig, HFCLIPTextModelWithProjection, embed_texts
from hf_clip.embedding.numpy_texts import NumpyTextTower, save_text_tower

TEXTS = [
    "a red car",
    "x",
    "snow &amp; <b>ice</b>",
    "naïve café — ‘quoted’",
    "<|endoftext|> hello",
    "a " * 70,
    "日本 🙂",
]


@pytest.fixture(scope="module")
def clip(repositories):
    return load(repositories[FAMILIES[0]])


def saved(model, processor, path, **changes) -> bool:
    settings = model.config.text_config.to_dict() | changes
    return save_text_tower(model.state_dict(), settings, processor.tokenizer.backend_tokenizer.to_str(), path)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_embeddings_are_the_models(clip, activation, half, tmp_path):
    text = clip[0].config.text_config.to_dict() | {"hidden_act": activation, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = HFCLIPTextModelWithProjection(HFCLIPTextConfig(**text)).eval()
    if half:
        model.half().float()
    path = tmp_path / "t.safetensors"
    tokenizer = clip[1].tokenizer
    assert save_text_tower(model.state_dict(), model.config.to_dict(), tokenizer.backend_tokenizer.to_str(), path)
    assert {array.dtype.name for array in load_file(path).values()} >= {"float16" if half else "float32"}
    np.testing.assert_allclose(NumpyTextTower(path).embed(TEXTS), embed_texts(model, tokenizer, TEXTS), atol=1e-6)


def test_a_longer_text_is_refused(clip, tmp_path):
    assert saved(*clip, tmp_path / "t")
    with pytest.raises(ValueError, match="has 102 tokens, the model reads 77"):
        NumpyTextTower(tmp_path / "t").embed(["a " * 100])


@pytest.mark.parametrize("changes", [{"hidden_act": "silu"}, {"eos_token_id": None}, {"num_hidden_layers": 9}])
def test_another_tower_is_not_written(clip, changes, tmp_path):
    assert not saved(*clip, tmp_path / "t", **changes)
    assert not (tmp_path / "t").exists()


def test_what_is_no_tower_is_refused(clip, tmp_path):
    path = tmp_path / "t"
    with pytest.raises(FileNotFoundError):
        NumpyTextTower(path)
    path.write_bytes(b"none")
    with pytest.raises(ValueError, match="is no text tower"):
        NumpyTextTower(path)
    assert saved(*clip, path)
    arrays = load_file(path)
    settings = {name: clip[0].config.text_config.to_dict()[name] for name in ("num_attention_heads", "hidden_act")}
    save_file(
        arrays, path, {"settings": json.dumps(settings), "tokenizer": clip[1].tokenizer.backend_tokenizer.to_str()}
    )
    with pytest.raises(ValueError, match="is no text tower of CLIP"):
        NumpyTextTower(path)
    save_file(arrays, path, {"settings": "{}", "tokenizer": "{}"})
    with pytest.raises(ValueError, match="holds no vocabulary"):
        NumpyTextTower(path)


TABLE, FIRST = "text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.0."
DAMAGE = {
    **{
        f"{n} {v}": ({n: v}, {})
        for n in ("num_attention_heads", "num_hidden_layers")
        for v in (-1, 10**9, True, "x", 1.5)
    },
    **{f"epsilon {value}": ({"layer_norm_eps": value}, {}) for value in (0.0, -1.0, float("nan"), float("inf"), "x")},
    "heads that do not divide the width": ({"num_attention_heads": 7}, {}),
    "another end": ({"eos_token_id": 5}, {}),
    "integers": ({}, {TABLE: lambda x: x.astype(np.int32)}),
    "a shorter row": ({}, {TABLE: lambda x: x[:, :-1]}),
    "a number": ({}, {TABLE: lambda x: x[0, 0]}),
    "a wider layer": ({}, {f"{FIRST}mlp.fc2.weight": lambda x: np.concatenate([x, x], 1)}),
    "a bias of another layer": ({}, {f"{FIRST}layer_norm1.bias": lambda x: x[:-1]}),
    "not finite": ({}, {f"{FIRST}layer_norm1.bias": lambda x: x * np.nan}),
    "zeros": ({}, {"text_projection.weight": lambda x: x * 0}),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_tower_of_a_stranger_is_refused_in_one_sentence(clip, what, tmp_path):
    path = tmp_path / "t"
    assert saved(*clip, path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    arrays, (settings, changes) = load_file(path), DAMAGE[what]
    metadata["settings"] = json.dumps(json.loads(metadata["settings"]) | settings)
    arrays |= {name: np.ascontiguousarray(change(arrays[name])) for name, change in changes.items()}
    save_file(arrays, path, metadata)
    with pytest.raises(ValueError, match=r"^[^\n]*write (it|the text tower) again$"):
        NumpyTextTower(path).embed(["a red car"])
