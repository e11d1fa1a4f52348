from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_clip.export.card import write_export_card
from hf_clip.exported.manifest import Manifest
from hf_clip.openai.published import LICENSE, inherited_license

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


@pytest.mark.parametrize(
    ("card", "fields"),
    [
        ("license: apache-2.0", {"license": "apache-2.0"}),
        ("license: other\nlicense_name: mine\nlicense_link: LICENSE", {"license": "other", "license_name": "mine"}),
        ("license: unknown", {}),
        ("license: [", {}),
        ("language: en", {}),
        (None, {}),
    ],
)
def test_the_license_is_the_model_s_or_left_out(card, fields, tmp_path: Path):
    (tmp_path / "tuned").mkdir()
    if card:
        (tmp_path / "tuned" / "README.md").write_text(f"---\n{card}\n---\n# tuned\n")
    metadata, sentence = inherited_license(str(tmp_path / "tuned"))
    assert yaml.safe_load(metadata) == (fields or None)
    assert sentence.startswith("The license is that of tuned, ")
    assert ("does not know" in sentence) is not bool(fields)


@pytest.mark.parametrize("model", ["RN50", "openai/clip-vit-base-patch32", "hf-hub:timm/resnet50_clip.openai@main"])
def test_the_nine_have_openai_s_license(model, tmp_path: Path):
    write_export_card(tmp_path, "out", Manifest("onnx", "plain", {}, "", "", 4.6, model, {}), FILES)
    card = ModelCard.load(tmp_path / "README.md")
    assert {key: card.data[key] for key in LICENSE} == LICENSE
    assert "without a license of their own" in card.text


def test_nothing_is_guessed_of_other_models_on_the_hub(tmp_path: Path):
    write_export_card(tmp_path, "out", Manifest("onnx", "plain", {}, "", "", 4.6, "org/clip", {}), FILES)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license is None
    assert "The license is that of org/clip, which this card does not know" in card.text
