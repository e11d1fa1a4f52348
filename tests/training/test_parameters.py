"""What is trained, and how fast."""

import re
from pathlib import Path

import pytest
from torch import nn
from transformers import CLIPConfig, CLIPModel

from hf_clip import HFCLIPModel
from hf_clip.training.parameters import lora_target_modules, param_groups, trainable, trained

TOWERS = {"image": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")}


@pytest.fixture
def model(family: str, repositories: dict[str, Path]) -> HFCLIPModel:
    return HFCLIPModel.from_pretrained(repositories[family])


def names(model: nn.Module) -> set[str]:
    return {name for name, _ in trained(model)}


@pytest.mark.parametrize("tower", TOWERS)
def test_a_tower_is_trained_alone(model: HFCLIPModel, tower: str):
    expected = {name for name, _ in model.named_parameters() if name.startswith(TOWERS[tower])}
    assert names(trainable(model, tower)) == expected | {"logit_scale"}
    assert names(trainable(model, tower, logit_scale=False)) == expected
    assert names(trainable(model)) == {name for name, _ in model.named_parameters()}


def test_projections_are_trained_alone(model: HFCLIPModel):
    """The embeddings of both towers move, nothing before their last linear layer does."""
    found = names(trainable(model, "projections", logit_scale=False))
    resnet = isinstance(model.visual_projection, nn.Identity)
    image = {f"vision_model.attention_pool.out_proj.{part}" for part in ("weight", "bias")}
    assert found == {"text_projection.weight"} | (image if resnet else {"visual_projection.weight"})


def test_the_last_layer_is_trained_with_what_follows(model: HFCLIPModel):
    found = names(trainable(model, last_layers=1))
    layers = {match[0] for name in found if (match := re.search(r"(text|vision)_model.*?\.\d+\.", name))}
    count = model.config.text_config.num_hidden_layers
    assert f"text_model.encoder.layers.{count - 1}." in layers
    assert len(layers) == 2
    assert "text_projection.weight" in found
    assert not any("embeddings" in name or "stem" in name for name in found)


def test_nothing_that_is_not_there_is_trained(model: HFCLIPModel):
    with pytest.raises(ValueError, match="there is no part 'vision'"):
        trainable(model, "vision")
    with pytest.raises(ValueError, match="last_layers is 99, the model has"):
        trainable(model, last_layers=99)
    with pytest.raises(ValueError, match="no parameter is trained"):
        param_groups(model.requires_grad_(False), 1e-5, 0.1)


def stock_model(repositories: dict[str, Path]) -> CLIPModel:
    config = HFCLIPModel.from_pretrained(repositories["tiny ViT"]).config.to_dict()
    return CLIPModel(CLIPConfig(text_config=config["text_config"], vision_config=config["vision_config"]))


def test_gains_biases_scales_and_places_do_not_decay(model: HFCLIPModel, repositories: dict[str, Path]):
    for one in (model, stock_model(repositories)):
        groups = param_groups(one, 1e-5, 0.1)
        decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(list(one.parameters()))
        for name, parameter in one.named_parameters():
            spared = parameter.ndim <= 1 or "position_embedding" in name
            assert (id(parameter) in decayed) is not spared, name


def test_earlier_layers_learn_slower(model: HFCLIPModel):
    groups = param_groups(model, 1.0, 0.1, image_layer_decay=0.5, text_layer_decay=0.9)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    by_name = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    count = model.config.text_config.num_hidden_layers
    layers = [by_name[f"text_model.encoder.layers.{layer}.mlp.fc1.weight"] for layer in range(count)]
    assert layers == pytest.approx([0.9 ** (count - layer) for layer in range(count)])
    assert by_name["text_model.embeddings.token_embedding.weight"] == pytest.approx(0.9 ** (count + 1))
    assert by_name["text_projection.weight"] == by_name["logit_scale"] == 1
    resnet = isinstance(model.visual_projection, nn.Identity)
    first, last = (
        ("vision_model.stem.conv1.weight", "vision_model.attention_pool.q_proj.weight")
        if resnet
        else ("vision_model.embeddings.class_embedding", "vision_model.post_layernorm.weight")
    )
    depth = len(model.vision_model.stages) if resnet else model.config.vision_config.num_hidden_layers
    assert (by_name[first], by_name[last]) == (pytest.approx(0.5 ** (depth + 1)), 1)


@pytest.mark.parametrize("projections", [False, True])
@pytest.mark.parametrize("towers", ["both", "image", "text"])
def test_lora_adapts_linear_layers_of_the_towers(model: HFCLIPModel, towers: str, projections: bool):
    pattern = lora_target_modules(model, towers, projections)
    found = {name: module for name, module in model.named_modules() if re.fullmatch(pattern, name)}
    assert all(isinstance(module, nn.Linear) for module in found.values())
    prefixes = [prefix for tower in TOWERS if towers in ("both", tower) for prefix in TOWERS[tower]]
    assert all(name.startswith(tuple(prefixes)) for name in (f"{found_name}." for found_name in found))
    wanted = {"both": {"text", "vision"}, "image": {"vision"}, "text": {"text"}}[towers]
    assert {name.split("_")[0] for name in found} >= wanted
    assert any("proj" in name and not name.endswith(("q_proj", "v_proj")) for name in found) is projections
    with pytest.raises(ValueError, match="there is no tower"):
        lora_target_modules(model, "vision")


def test_lora_adapts_the_layers_that_are_named(model: HFCLIPModel):
    pattern = lora_target_modules(model, layers=("k_proj", "fc1"))
    found = {name.rpartition(".")[2] for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    assert found == {"k_proj", "fc1"}
    for layers in ((), ("query",), ("q_proj", "")):
        with pytest.raises(ValueError, match=r"there is no layer '\w*' to adapt: choose of q_proj, k_proj"):
            lora_target_modules(model, layers=layers)
