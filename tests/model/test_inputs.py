"""One sentence for each wrong input, from every class that reads it, exact and optimized."""

import copy

import pytest
import torch
from support.originals import inputs, original_model
from transformers import AutoModel, BatchEncoding, BatchFeature

from hf_clip import HFCLIPModel, HFCLIPTextModelWithProjection, HFCLIPVisionModelWithProjection

WRONG_PIXELS = {
    "one image": (lambda x: x[0], ValueError, r"has 3 axes.*pixel_values\[None\]"),
    "gray": (lambda x: x[:, :1], ValueError, "has 1 channels on its second axis, the model reads 3"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), ValueError, r"move the channels with .*permute\(0, 3, 1, 2\)"),
    "list": (lambda x: x.tolist(), TypeError, "pixel_values is a list, not a tensor"),
    "array": (lambda x: x.numpy(), TypeError, "pixel_values is a ndarray, not a tensor"),
    "batch": (lambda x: BatchFeature({"pixel_values": x}), TypeError, r"pass batch\['pixel_values'\]"),
    "size": (lambda x: x[..., :16, :16], ValueError, "images are 16x16, the model reads"),
}
WRONG_IDS = {
    "floats": (lambda x: x.float(), TypeError, "input_ids are torch.float32, not integers"),
    "negative": (lambda x: x - 50000, ValueError, "has the id -50000, outside the vocabulary of 49408"),
    "unknown": (lambda x: x + 1, ValueError, "has the id 49408, outside the vocabulary of 49408"),
    "list": (lambda x: x.tolist(), TypeError, "input_ids is a list, not a tensor"),
    "batch": (lambda x: BatchEncoding({"input_ids": x}), TypeError, r"pass batch\['input_ids'\]"),
    "empty": (lambda x: x[:, :0], ValueError, r"has the shape \(3, 0\)"),
}


@pytest.fixture
def batch(family):
    pixel_values, input_ids = inputs(original_model(family))
    return {"input_ids": input_ids, "pixel_values": pixel_values}


@pytest.fixture(params=["exact", "optimized"])
def load(request, repositories, family):
    def load(cls: type):
        model = cls.from_pretrained(repositories[family]).eval()
        return model.optimize_for_inference() if request.param == "optimized" else model

    return load


@pytest.mark.parametrize(("spoil", "error", "message"), WRONG_PIXELS.values(), ids=WRONG_PIXELS)
def test_wrong_pixels(load, batch, spoil, error, message):
    joint = load(HFCLIPModel)
    pixels = spoil(batch["pixel_values"])
    for call in (joint.encode_image, joint.vision_model, load(HFCLIPVisionModelWithProjection)):
        with pytest.raises(error, match=message):
            call(pixels)


def test_images_smaller_than_one_position(load, batch):
    with pytest.raises(ValueError, match="images are 4x4, smaller than the model's stride of"):
        load(HFCLIPModel).encode_image(batch["pixel_values"][..., :4, :4], interpolate_pos_encoding=True)


@pytest.mark.parametrize(("spoil", "error", "message"), WRONG_IDS.values(), ids=WRONG_IDS)
def test_wrong_ids(load, batch, spoil, error, message):
    joint = load(HFCLIPModel)
    ids = spoil(batch["input_ids"])
    for call in (joint.encode_text, joint.text_model, load(HFCLIPTextModelWithProjection)):
        with pytest.raises(error, match=message):
            call(ids)


def test_a_mask_of_another_length(load, batch):
    mask = torch.ones(3, 5, dtype=torch.long)
    with pytest.raises(ValueError, match="attention_mask has 5 columns, input_ids has 77"):
        load(HFCLIPModel).encode_text(batch["input_ids"], mask)


def test_the_joint_model_wants_both(load, batch):
    model = load(HFCLIPModel)
    with pytest.raises(ValueError, match=r"input_ids is missing.*call get_image_features"):
        model(pixel_values=batch["pixel_values"])
    with pytest.raises(ValueError, match=r"pixel_values is missing.*call get_text_features"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="got 2 images and 3 texts: give as many of both"):
        model(**batch, return_loss=True)


def test_a_file_is_no_folder(archives, family):
    with pytest.raises(ValueError, match=r"is a file, from_pretrained loads folders: use hf_clip.load_clip"):
        HFCLIPModel.from_pretrained(archives[family])


@torch.no_grad()
def test_the_attention_backend_can_be_changed(repositories, family, batch):
    """As transformers decides by reading the file of each class."""
    model = AutoModel.from_pretrained(repositories[family]).eval()
    expected = copy.deepcopy(model)(**batch)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    outputs = model(**batch, output_attentions=True)
    assert len(outputs.text_model_output.attentions) == 2
    assert len(outputs.vision_model_output.attentions) == (2 if "ViT" in family else 1)
    torch.testing.assert_close(outputs.logits_per_image, expected.logits_per_image, rtol=1e-4, atol=1e-4)
