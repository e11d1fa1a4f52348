"""Folders that open_clip's own code loads, compared with the original."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.commands import run
from support.originals import inputs, original_model

from hf_clip import HFCLIPImageProcessor, HFCLIPModel
from hf_clip.openai.convert import convert
from hf_clip.openai.errors import CheckpointError
from hf_clip.openai.open_clip_folder import open_clip_config
from hf_clip.openai.pixels import OPENAI_PIXELS, Pixels, recorded_pixels
from hf_clip.openai.published import CheckpointLayout
from hf_clip.openai.to_openai import to_openai
from hf_clip.openai.variants import recorded_variant


@pytest.fixture
def folder(repositories, family, tmp_path):
    to_openai(repositories[family], tmp_path / "open_clip", CheckpointLayout.open_clip, report=lambda _: None)
    return tmp_path / "open_clip"


def test_open_clip_computes_the_same(folder, repositories, family):
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours = HFCLIPModel.from_pretrained(repositories[family]).eval()
    pixels, ids = inputs(original_model(family))
    ids = ids.long()
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode_image(pixels), ours.encode_image(pixels), rtol=0, atol=1e-6)
        torch.testing.assert_close(model.encode_text(ids), ours.encode_text(ids), rtol=0, atol=1e-6)
    assert torch.equal(model.logit_scale, ours.logit_scale)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8))
    processor = HFCLIPImageProcessor.from_pretrained(repositories[family])
    assert torch.equal(transform(image), processor(image, return_tensors="pt").pixel_values[0])


def test_a_model_comes_back_bit_for_bit(folder, repositories, family, tmp_path):
    convert(folder, tmp_path / "back", report=lambda _: None)
    for name in ("model.safetensors", "config.json", "processor_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (repositories[family] / name).read_bytes(), name


def test_other_settings_come_back(repositories, family, tmp_path):
    """Heads, activation and pixels that are not the defaults."""
    model = HFCLIPModel.from_pretrained(repositories[family])
    vision, text = model.config.vision_config, model.config.text_config
    text.num_attention_heads, vision.num_attention_heads, text.hidden_act = 4, 2, "gelu"
    if not vision.is_resnet:
        vision.hidden_act = "gelu"
    pixels = Pixels((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", "squash")
    model.save_pretrained(tmp_path / "hf")
    HFCLIPImageProcessor(**pixels.settings(vision.image_size)).save_pretrained(tmp_path / "hf")
    assert run("to-openai", tmp_path / "hf", "--output", tmp_path / "out", "--layout", "open_clip") == 0
    assert recorded_pixels(tmp_path / "out" / "x") == pixels
    variant = recorded_variant(tmp_path / "out" / "x")
    assert (variant.activation, variant.text_heads) == ("gelu", 4)
    theirs, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'out'}")
    ours = HFCLIPModel.from_pretrained(tmp_path / "hf").eval()
    images, ids = inputs(original_model(family))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval().encode_image(images), ours.encode_image(images), rtol=0, atol=1e-6)
        torch.testing.assert_close(theirs.encode_text(ids.long()), ours.encode_text(ids), rtol=0, atol=1e-6)


def test_a_folder_without_an_image_processor(repositories, family, tmp_path, capsys):
    HFCLIPModel.from_pretrained(repositories[family]).save_pretrained(tmp_path / "hf")
    assert run("to-openai", tmp_path / "hf", "--output", tmp_path / "out", "--layout", "open_clip") == 0
    assert "hf has no image processor: assuming OpenAI's pixels" in capsys.readouterr().out
    assert recorded_pixels(tmp_path / "out" / "x") == OPENAI_PIXELS


PROCESSORS = {
    "another size": ({"size": {"shortest_edge": 40}}, "the image processor has size .*40"),
    "not rescaled": ({"do_rescale": False}, "has do_rescale False"),
    "lanczos": ({"resample": 1}, "has resample 1"),
}


@pytest.mark.parametrize(("changed", "message"), PROCESSORS.values(), ids=PROCESSORS)
def test_pixels_that_open_clip_cannot_make(changed, message):
    with pytest.raises(CheckpointError, match=message):
        Pixels.of(HFCLIPImageProcessor(**OPENAI_PIXELS.settings(32) | changed), 32)


def test_models_that_open_clip_cannot_express(repositories, family):
    config = HFCLIPModel.config_class.from_pretrained(repositories[family])
    config.text_config.hidden_act = "relu"
    with pytest.raises(CheckpointError, match="open_clip has one activation for both towers, quick_gelu or gelu"):
        open_clip_config(config, OPENAI_PIXELS)
    config = HFCLIPModel.config_class.from_pretrained(repositories[family])
    config.text_config.layer_norm_eps = 1e-6
    with pytest.raises(CheckpointError, match="open_clip has layer_norm_eps 1e-05"):
        open_clip_config(config, OPENAI_PIXELS)


def test_a_damaged_image_processor(repositories, family, tmp_path, capsys):
    HFCLIPModel.from_pretrained(repositories[family]).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text("[")
    assert run("to-openai", tmp_path / "hf", "--output", tmp_path / "out", "--layout", "open_clip") == 1
    assert "has no image processor that can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_is_replaced_whole(folder, repositories, family):
    save_file({"old": torch.ones(1)}, folder / "open_clip_model.safetensors")
    (folder / "old.txt").write_text("old")
    options = ("--output", folder, "--layout", "open_clip")
    assert run("to-openai", repositories[family], *options) == 1
    assert run("to-openai", repositories[family], *options, "--force") == 0
    assert {path.name for path in folder.iterdir()} == {"open_clip_config.json", "open_clip_model.safetensors"}
    assert json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is True
