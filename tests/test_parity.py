"""The nine architectures at full size: one archive as the original loads it, as the drop-in does, and converted."""

import clip.model as theirs
import pytest
import torch
from support.originals import (
    ARCHITECTURES,
    FAMILIES,
    both_features_and_logits,
    inputs,
    load_original,
    original_model,
    save_archive,
    without_random_start,
)
from torch.nn.functional import normalize
from transformers import AutoModel, CLIPModel

import hf_clip.openai as ours
from hf_clip.openai import model as mine
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


def dtypes(state_dict) -> list[torch.dtype]:
    return [tensor.dtype for tensor in state_dict.values()]


def assert_equal_tensors(found, expected):
    """Names, dtypes and bits."""
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


def assert_equal_outputs(found, expected):
    for got, right in zip(found, expected, strict=True):
        assert got.dtype == right.dtype
        assert torch.equal(got, right)


def outputs_of(model, pixels, ids):
    """Both features and both logits, in the order of `both_features_and_logits`."""
    found = model(input_ids=ids, pixel_values=pixels)
    features = (found.vision_model_output.pooler_output, found.text_model_output.pooler_output)
    return [*features, found.logits_per_image, found.logits_per_text]


def test_bit_equal_and_back(archive, tmp_path):
    """In fp32 on the CPU, with one image and two; every tensor of the exported file; stock CLIPModel for ViTs."""
    name, path = archive
    original = load_original(path)
    pixels, ids = inputs(original, images=2, texts=5)
    alone = inputs(original, images=1)[0]
    expected, expected_alone = both_features_and_logits(original, pixels, ids), original.encode_image(alone)
    assert expected[0].std() > 0

    drop_in = ours.load(path, "cpu")[0]
    assert list(drop_in.state_dict()) == list(original.state_dict())
    assert_equal_tensors(drop_in.state_dict(), original.state_dict())
    assert_equal_outputs(both_features_and_logits(drop_in, pixels, ids), expected)
    assert torch.equal(drop_in.encode_image(alone), expected_alone)
    del drop_in
    with without_random_start():
        mix = theirs.build_model(dict(original.state_dict())).state_dict()
    assert dtypes(mine.build_model(original.state_dict()).state_dict()) == dtypes(mix)
    del mix, original

    convert(str(path), tmp_path / "converted")
    model = AutoModel.from_pretrained(tmp_path / "converted").eval()
    assert_equal_outputs(outputs_of(model, pixels, ids), expected)
    del model
    to_openai(tmp_path / "converted", tmp_path / "back.pt")
    assert_equal_tensors(read_checkpoint(tmp_path / "back.pt"), read_checkpoint(path))
    if name.startswith("ViT"):
        convert(str(path), tmp_path / "stock", layout=Layout.transformers)
        stock, report = CLIPModel.from_pretrained(tmp_path / "stock", output_loading_info=True)
        assert not any(report.values())
        embeds = stock.eval()(input_ids=ids, pixel_values=pixels).image_embeds
        torch.testing.assert_close(embeds, normalize(expected[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("archive", ["ViT-B/32", "RN50"], indirect=True)
def test_bit_equal_in_mixed_fp16(archive, tmp_path):
    """What `convert_weights` leaves, on the CPU."""
    _, path = archive
    convert(str(path), tmp_path / "converted")
    with without_random_start():
        original = theirs.build_model(dict(read_checkpoint(path)))
    model = AutoModel.from_pretrained(tmp_path / "converted", dtype=torch.float16).eval()
    assert model.dtype == original.dtype == torch.float16
    pixels, ids = inputs(original, images=1, texts=2)
    assert_equal_outputs(outputs_of(model, pixels, ids), both_features_and_logits(original, pixels, ids))
