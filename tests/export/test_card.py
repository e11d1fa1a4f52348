from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_clip.export.card import write_export_card
from hf_clip.exported.manifest import Manifest

FILES = {"onnx/vision_model.onnx": {"part": "vision", "precision": "fp32", "bytes": 1234567, "cosine_min": 0.9999994}}


@pytest.mark.parametrize(
    ("runtime", "target", "source", "library", "base"),
    [
        ("onnx", "transformers.js", "ViT-B/32", "transformers.js", "openai/clip-vit-base-patch32"),
        ("onnx", "immich", "org/clip", "onnx", "org/clip"),
        ("openvino", "transformers.js", "RN50", "openvino", None),
    ],
)
def test_a_card_names_the_model_and_what_was_measured(runtime, target, source, library, base, tmp_path: Path):
    write_export_card(tmp_path, "clip-onnx", Manifest(runtime, target, {}, "", "", 4.6, source, {}), FILES)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.base_model) == (library, base)
    assert card.data.to_dict().get("base_model_relation") == (None if base is None else "quantized")
    assert runtime in card.data.tags
    assert "| onnx/vision_model.onnx | vision | fp32 | 1,234,567 | 0.999999 |" in card.text
    assert 'load_clip("clip-onnx")' in card.text


def test_a_local_model_is_named_without_its_path(tmp_path: Path):
    (tmp_path / "tuned").mkdir()
    manifest = Manifest("onnx", "plain", {}, "", "", 4.6, str(tmp_path / "tuned"), {})
    write_export_card(tmp_path, "out", manifest, FILES)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model is None
    assert str(tmp_path) not in card.content
    assert "tuned, exported for plain" in card.text
