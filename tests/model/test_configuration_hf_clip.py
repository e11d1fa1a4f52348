import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPConfig

from hf_clip import HFCLIPConfig, HFCLIPResNetConfig, HFCLIPTextConfig, HFCLIPVisionConfig

TEXT = {"hidden_size": 96, "num_attention_heads": 3, "projection_dim": 48}
VISION = {"ViT": HFCLIPVisionConfig(image_size=96, projection_dim=48), "ResNet": HFCLIPResNetConfig(projection_dim=48)}


@pytest.mark.parametrize("vision", VISION.values(), ids=VISION)
@pytest.mark.parametrize("load", [HFCLIPConfig, AutoConfig])
def test_saving_and_loading_changes_nothing(vision, load, tmp_path):
    config = HFCLIPConfig(text_config=TEXT, vision_config=vision)
    config.save_pretrained(tmp_path)
    loaded = load.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert type(loaded.vision_config) is type(vision)


@pytest.mark.parametrize("vision", VISION.values(), ids=VISION)
def test_towers_read_their_part_of_a_joint_folder(vision, tmp_path):
    HFCLIPConfig(text_config=TEXT, vision_config=vision).save_pretrained(tmp_path)
    assert HFCLIPTextConfig.from_pretrained(tmp_path).hidden_size == 96
    # either class gives the tower that is there
    for load in (HFCLIPVisionConfig, HFCLIPResNetConfig):
        assert type(load.from_pretrained(tmp_path)) is type(vision)


def test_file_is_short(tmp_path):
    HFCLIPConfig(vision_config=VISION["ResNet"], text_config=TEXT).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["vision_config"].keys() == {
        "model_type",
        "width",
        "depths",
        "projection_dim",
        "num_attention_heads",
        "num_channels",
        "image_size",
        "batch_norm_eps",
    }


def test_dictionaries_choose_the_family():
    assert isinstance(
        HFCLIPConfig(text_config=TEXT, vision_config={"projection_dim": 48}).vision_config, HFCLIPVisionConfig
    )
    resnet = {"model_type": "hf_clip_resnet", "projection_dim": 48}
    assert isinstance(HFCLIPConfig(text_config=TEXT, vision_config=resnet).vision_config, HFCLIPResNetConfig)


def test_joint_projection_dim_rules_the_towers():
    config = HFCLIPConfig(projection_dim=7)
    assert config.text_config.projection_dim == config.vision_config.projection_dim == 7


def test_stock_configurations_are_read(tmp_path):
    stock = CLIPConfig(text_config={"eos_token_id": 2, "hidden_size": 64}, vision_config={"image_size": 336})
    stock.save_pretrained(tmp_path)
    config = HFCLIPConfig.from_pretrained(tmp_path)
    assert config.model_type == "hf_clip"
    assert (config.text_config.hidden_size, config.vision_config.image_size) == (64, 336)
    # 2 is a known error of published stock configurations
    assert config.text_config.eos_token_id == 49407
    assert HFCLIPTextConfig.from_pretrained(tmp_path).eos_token_id == 49407


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HFCLIPConfig(vision_config={"model_type": "siglip"}), "unknown vision model_type 'siglip'"),
        (lambda: HFCLIPConfig(vision_config=HFCLIPResNetConfig()), "project to different sizes: text 512, vision 1024"),
        (lambda: HFCLIPTextConfig(hidden_size=100, num_attention_heads=3), "100 is not a multiple"),
        (lambda: HFCLIPVisionConfig(image_size=16), "smaller than one patch"),
        (lambda: HFCLIPResNetConfig(image_size=16), "smaller than the stride"),
        (lambda: HFCLIPResNetConfig(depths=[1, 2]), "four stages"),
        (lambda: HFCLIPVisionConfig(image_size="large"), "image_size"),
        (lambda: HFCLIPTextConfig(vocab_size=1000), "eos_token_id 49407 is outside the vocabulary of 1000"),
    ],
)
def test_errors(make, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        make()
