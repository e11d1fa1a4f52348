import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPConfig, CLIPTextConfig, MetaClip2Config

import hf_clip
from hf_clip import (
    HFCLIPConfig,
    HFCLIPModel,
    HFCLIPResNetConfig,
    HFCLIPTextConfig,
    HFCLIPTextModel,
    HFCLIPVisionConfig,
)
from hf_clip.model import configuration_hf_clip

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
        (lambda: HFCLIPResNetConfig(depths=[10**7, 1, 1, 1]), "depths are .*give 1 to 500 for each"),
        (lambda: HFCLIPVisionConfig(image_size=90_000, patch_size=1), "make about .* parameters, give at most"),
        (lambda: HFCLIPTextConfig(hidden_size=10**6, num_hidden_layers=400), "parameters, give at most"),
    ],
)
def test_errors(make, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        make()


def written(config, folder) -> dict:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("config", [HFCLIPConfig(), HFCLIPTextConfig(), HFCLIPVisionConfig(), HFCLIPResNetConfig()])
def test_config_json_names_the_version_that_wrote_it(config, tmp_path):
    assert written(config, tmp_path)["hf_clip_version"] == hf_clip.__version__
    loaded = type(config).from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert not hasattr(loaded, "hf_clip_version")
    assert all("hf_clip_version" not in written(config, tmp_path).get(part, {}) for part in config.sub_configs)


@pytest.mark.parametrize("load", [HFCLIPConfig.from_pretrained, AutoConfig.from_pretrained])
@pytest.mark.parametrize("part", ["joint", "text_config", "vision_config"])
def test_a_field_of_a_newer_version_is_refused_by_name(load, part, tmp_path):
    fields = written(HFCLIPConfig(vision_config=HFCLIPResNetConfig(projection_dim=512)), tmp_path)
    (fields if part == "joint" else fields[part])["pool_type"] = "avg"
    fields["hf_clip_version"] = "99.1"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"by hf_clip 99\.1 and has pool_type, which hf_clip .* does not know: update"):
        load(tmp_path)


def test_a_newer_version_without_new_fields_loads(tmp_path, monkeypatch):
    """One sentence says so, once."""
    fields = written(HFCLIPConfig(), tmp_path) | {"hf_clip_version": "99.2"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    warnings = []
    monkeypatch.setattr(configuration_hf_clip.logger, "warning", warnings.append)
    HFCLIPConfig.from_pretrained(tmp_path)
    loaded = HFCLIPConfig.from_pretrained(tmp_path).to_diff_dict()
    (sentence,) = warnings
    assert f"written by hf_clip 99.2, and the code of hf_clip {hf_clip.__version__} runs" in sentence
    assert loaded["text_config"] == HFCLIPConfig().to_diff_dict()["text_config"]
    assert loaded["hf_clip_version"] == hf_clip.__version__


def test_an_unread_field_is_named_in_a_warning(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(configuration_hf_clip.logger, "warning", warnings.append)
    HFCLIPTextConfig(hiden_size=512)
    assert warnings == ["HFCLIPTextConfig has no field hiden_size: nothing reads it"]
    CLIPConfig(vision_config={"initializer_factor": 0.5}).save_pretrained(tmp_path / "stock")
    HFCLIPConfig.from_pretrained(tmp_path / "stock").save_pretrained(tmp_path)
    HFCLIPConfig.from_pretrained(tmp_path)
    assert len(warnings) == 1, "fields that only stock classes read are no news"


@pytest.mark.parametrize("load", [HFCLIPConfig.from_pretrained, HFCLIPModel.from_pretrained])
def test_the_folder_of_another_model_is_refused(load, tmp_path):
    MetaClip2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'metaclip_2', not a CLIP of OpenAI's architecture"):
        load(tmp_path)


def test_id_2_is_an_eot_like_any_other(tmp_path):
    """Stock configurations of CLIP's vocabulary hold it in error; of others they mean the highest id by it."""
    own = HFCLIPTextConfig(vocab_size=1000, bos_token_id=0, eos_token_id=2)
    ids = torch.tensor([[0, 900, 2, 1], [0, 5, 6, 2]])
    assert first_eot(own, ids) == [2, 3]
    CLIPTextConfig(vocab_size=1000, bos_token_id=0, eos_token_id=2).save_pretrained(tmp_path)
    stock = HFCLIPTextConfig.from_pretrained(tmp_path)
    assert stock.eos_token_id is None
    assert first_eot(stock, ids) == [1, 2]
    stock.save_pretrained(tmp_path)
    assert HFCLIPTextConfig.from_pretrained(tmp_path).eos_token_id is None


def first_eot(config: HFCLIPTextConfig, ids: torch.Tensor) -> list[int]:
    return HFCLIPTextModel(config).first_eot(ids).tolist()


FAMILIES = {"text": HFCLIPTextConfig, "ViT": HFCLIPVisionConfig, "ResNet": HFCLIPResNetConfig}


@pytest.mark.parametrize("size", [-1, 10**9, 10**400], ids=["-1", "10^9", "10^400"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_size_is_allocated_that_no_model_has(family, size):
    """Folders come from strangers, and a model of 10^7 layers is made before its weights are read."""
    names = [name for name in configuration_hf_clip.SIZE_LIMITS if name in FAMILIES[family].__dataclass_fields__]
    assert len(names) >= 5
    for name in names:
        with pytest.raises((ValueError, StrictDataclassError), match=f"{name} is {str(size)[:20]}, give "):
            FAMILIES[family](**{name: size})
