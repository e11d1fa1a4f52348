"""The nine architectures at full size: archive -> convert -> AutoModel, beside the original's own loading."""

import pytest
import torch
from clip.model import build_model
from support.originals import ARCHITECTURES, FAMILIES, inputs, load_original, original_model, save_archive
from transformers import AutoModel, CLIPModel

from hf_clip.openai.checkpoints import read_checkpoint
from hf_clip.openai.convert import Layout, convert
from hf_clip.openai.to_openai import to_openai

FULL_SIZE = [name for name in ARCHITECTURES if name not in FAMILIES]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=FULL_SIZE)
def archive(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / "original.pt"
    save_archive(original_model(request.param), path, half_graph=False)
    yield request.param, path
    path.unlink()


def assert_equal_outputs(model, original, pixels, ids):
    ours = model(input_ids=ids, pixel_values=pixels)
    image_features = ours.vision_model_output.pooler_output
    text_features = ours.text_model_output.pooler_output
    assert torch.equal(image_features, original.encode_image(pixels))
    assert torch.equal(text_features, original.encode_text(ids))
    per_image, per_text = original(pixels, ids)
    assert torch.equal(ours.logits_per_image, per_image)
    assert torch.equal(ours.logits_per_text, per_text)
    assert image_features.std() > 0


def test_bit_equal_and_back(archive, tmp_path):
    """Features and both logits in fp32 on the CPU; every tensor of the exported file; stock CLIPModel for ViTs."""
    name, path = archive
    convert(str(path), tmp_path / "converted")
    original = load_original(path)
    model = AutoModel.from_pretrained(tmp_path / "converted").eval()
    pixels, ids = inputs(original)
    assert_equal_outputs(model, original, pixels, ids)
    image_embeds = model(input_ids=ids, pixel_values=pixels).image_embeds if name.startswith("ViT") else None
    del model, original

    to_openai(tmp_path / "converted", tmp_path / "back.pt")
    expected, exported = read_checkpoint(path), read_checkpoint(tmp_path / "back.pt")
    assert exported.keys() == expected.keys()
    for key, tensor in expected.items():
        assert exported[key].dtype == tensor.dtype, key
        assert torch.equal(exported[key], tensor), key
    if image_embeds is not None:
        convert(str(path), tmp_path / "stock", layout=Layout.transformers)
        stock, report = CLIPModel.from_pretrained(tmp_path / "stock", output_loading_info=True)
        assert not any(report.values())
        theirs = stock.eval()(input_ids=ids, pixel_values=pixels)
        torch.testing.assert_close(theirs.image_embeds, image_embeds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("archive", ["ViT-B/32", "RN50"], indirect=True)
def test_bit_equal_in_mixed_fp16(archive, tmp_path):
    """What `convert_weights` leaves, on the CPU."""
    _, path = archive
    convert(str(path), tmp_path / "converted")
    original = build_model(dict(read_checkpoint(path)))
    model = AutoModel.from_pretrained(tmp_path / "converted", dtype=torch.float16).eval()
    assert model.dtype == original.dtype == torch.float16
    pixels, ids = inputs(original, images=1, texts=2)
    assert_equal_outputs(model, original, pixels, ids)
