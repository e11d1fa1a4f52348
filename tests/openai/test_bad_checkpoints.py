"""Checkpoints and folders whose numbers make no model: one CheckpointError that names what is wrong."""

import json
import shutil
import time

import pytest
import torch
from support.originals import FAMILIES, original_model

from hf_clip.openai.checkpoints import read_checkpoint
from hf_clip.openai.convert import DType, Layout, to_repository
from hf_clip.openai.errors import CheckpointError
from hf_clip.openai.infer_config import infer_config
from hf_clip.openai.to_openai import read_repository, to_openai
from hf_clip.openai.variants import recorded_variant


def every(change):
    return lambda tensors: {key: change(t) if t.is_floating_point() else t for key, t in tensors.items()}


def put(key, *shape):
    return lambda tensors: tensors | {key: torch.zeros(shape)}


TENSORS = {
    "projection of one axis": (put("text_projection", 64), r"'text_projection' has the shape \(64,\)"),
    "empty projection": (put("text_projection", 64, 0), r"'text_projection' has the shape \(64, 0\)"),
    "patches of no size": (put("visual.conv1.weight", 64, 3, 0, 0), r"'visual.conv1.weight' has the shape"),
    "scalar positions": (put("positional_embedding"), r"'positional_embedding' has the shape \(\)"),
    "no image positions": (put("visual.positional_embedding", 0, 64), "'visual.positional_embedding' has the shape"),
    "one image position": (put("visual.positional_embedding", 1, 64), "which is not a square and one"),
    "integers": (every(torch.Tensor.int), "is of int32: save the weights as float32"),
    "complex": (every(lambda t: t.to(torch.complex64)), "is of complex64: save the weights as"),
    "8 bits": (every(lambda t: t.to(torch.float8_e4m3fn)), "is of float8_e4m3fn: save the weights as"),
    "half a million layers": (
        lambda tensors: tensors | {f"transformer.resblocks.{n}.x": torch.zeros(1) for n in range(501)},
        "503 layers|501 layers",
    ),
    "MetaCLIP 2": (put("token_embedding.weight", 901629, 64), "901,629 tokens, as MetaCLIP 2 with XLM-V's, CLIP's has"),
    "small vocabulary": (put("token_embedding.weight", 100, 64), "a vocabulary of 100 tokens, CLIP's has 49,408"),
}


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_make_no_model(change, message):
    tensors = change(original_model(FAMILIES[0]).state_dict())
    with pytest.raises(CheckpointError, match=message):
        to_repository(tensors, Layout.hf_clip, DType.original)


def test_a_few_tokens_may_have_been_added(family):
    tensors = original_model(family).state_dict()
    embedding = tensors["token_embedding.weight"]
    tensors["token_embedding.weight"] = torch.cat([embedding, embedding[:592]])
    assert to_repository(tensors, Layout.hf_clip, DType.original).config.text_config.vocab_size == 50000


OTHER_TOWERS = {
    "visual.trunk.stem.0.weight": "whose image tower is timm's",
    "visual.blocks.0.attn.q_proj.weight": "an EVA-CLIP",
    "text_decoder.resblocks.0.ln_1.weight": "a CoCa",
}


@pytest.mark.parametrize(("key", "message"), OTHER_TOWERS.items())
def test_other_towers_are_named(key, message, tmp_path):
    """timm's trunks were called ResNets that lack a tensor."""
    tensors = {
        "token_embedding.weight": torch.ones(2, 2),
        "visual.proj": torch.ones(2),
        "text_projection": torch.ones(2),
    }
    torch.save(tensors | {key: torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "x.pt")


HEADS = {
    "no channels a head": ("vision_cfg", "head_width", 0),
    "half a head": ("vision_cfg", "head_width", 42.5),
    "no heads": ("text_cfg", "heads", 0),
    "less than no heads": ("text_cfg", "heads", -1),
    "a float": ("text_cfg", "heads", 1.0),
    "many": ("text_cfg", "heads", 10**30),
    "a word": ("vision_cfg", "width", "64"),
}


@pytest.mark.parametrize(("tower", "field", "value"), HEADS.values(), ids=HEADS)
def test_heads_of_open_clip_that_make_no_model(tower, field, value, tmp_path):
    settings = {"vision_cfg": {"width": 64}, "text_cfg": {"heads": 1}}
    settings[tower][field] = value
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    with pytest.raises(CheckpointError, match=r"heads: pass the right number|does not describe a CLIP"):
        infer_config(original_model(FAMILIES[0]).state_dict(), recorded_variant(tmp_path / "x.pt"))


CONFIGS = {
    "no heads": (("text_config", "num_attention_heads", 0), "does not describe a CLIP"),
    "half a head": (("text_config", "num_attention_heads", 1.5), r"expected int, got float"),
    "three heads": (("text_config", "num_attention_heads", 3), "not a multiple of num_attention_heads 3"),
    "ten million layers": (("text_config", "num_hidden_layers", 10**7), "num_hidden_layers is 10000000, give 0 to 500"),
    "no patches": (("vision_config", "patch_size", 0), "patch_size is 0, give 1 to 100,000"),
    "a word": (("vision_config", "layer_norm_eps", "x"), "expected float, got str"),
    "unknown activation": (("text_config", "hidden_act", "n\x1bope"), r"unknown activation, 'n\\x1bope'"),
    "a list": (("vision_config", None, [1]), "does not describe a CLIP"),
    "another model": (("model_type", None, "bert"), "a model of the type 'bert'"),
}


@pytest.mark.parametrize(("setting", "message"), CONFIGS.values(), ids=CONFIGS)
def test_configurations_that_make_no_model(setting, message, repositories, tmp_path):
    folder = shutil.copytree(repositories[FAMILIES[0]], tmp_path / "folder")
    config, (tower, field, value) = json.loads((folder / "config.json").read_text()), setting
    (config if field is None else config[tower])[field or tower] = value
    (folder / "config.json").write_text(json.dumps(config))
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message) as error:
        to_openai(folder, tmp_path / "x.pt", report=print)
    assert time.process_time() - start < 5
    assert "\n" not in str(error.value)


FILES = {
    "config.json": ["", "{", "[]", "null", "[" * 100_000],
    "model.safetensors.index.json": [
        "{}",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "x"}}',
    ],
    "model.safetensors": ["", "hello"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in FILES for content in FILES[name]])
def test_files_of_a_folder_that_are_broken(name, content, repositories, tmp_path):
    folder = shutil.copytree(repositories[FAMILIES[0]], tmp_path / "folder")
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=r"is no JSON object|does not list the|cannot be read as"):
        read_repository(folder)
