"""What a training leaves beside the weights."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_clip.training.report import write_card, write_merge_card

REPORT = {"before": {"loss": 2.0}, "after": {"loss": 1.5}, "settings": {"learning_rate": 1e-5}}


@pytest.mark.parametrize("local", [True, False])
def test_a_card_says_what_was_done(tmp_path: Path, local: bool):
    """A folder is no base_model that the Hub knows."""
    (tmp_path / "clip-rn50").mkdir()
    base = str(tmp_path / "clip-rn50") if local else "hf-clip/clip-rn50"
    write_card(tmp_path, base, "photos", REPORT)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == (None if local else base)
    assert f"{'clip-rn50' if local else base}, fine-tuned on photos" in card.text
    assert str(tmp_path) not in card.text
    assert "| loss | 2 | 1.5 | -0.5 |" in card.text
    assert "| learning_rate | 1e-05 |" in card.text
    assert card.data.license is None
    assert card.data.to_dict().get("base_model_relation") == (None if local else "finetune")
    assert 'ZeroShotClassifier.from_pretrained("' in card.text


@pytest.mark.parametrize(
    ("base", "known"),
    [
        ("ViT-B/32", "openai/clip-vit-base-patch32"),
        ("RN50", None),
        ("ViT-L/14@336px", "openai/clip-vit-large-patch14-336"),
    ],
)
def test_the_base_of_a_card_is_a_repository_of_the_hub(tmp_path: Path, base: str, known: str | None):
    settings = {"settings": {"train": "lora"}, "after": {"data_acc1": 0.5, "mean_recall@1": 0.4}}
    write_card(tmp_path, base, "photos", settings)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == known
    assert card.data.library_name == "peft"
    assert (card.data.license, card.data.license_name) == ("other", "openai-clip")  # that of the nine
    assert card.data.metrics == ["accuracy", "recall"]
    assert f"hf-clip merge {base} {tmp_path.name}" in card.text


@pytest.mark.parametrize(
    ("base_license", "given", "license_id"),
    [("mit", None, "mit"), (None, None, None), ("mit", "apache-2.0", "apache-2.0"), ("'a: b'", None, "a: b")],
)
def test_a_license_is_given_or_that_of_the_base_or_none(tmp_path: Path, base_license, given, license_id):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(f"---\nlicense: {base_license}\n---\n" if base_license else "A folder.\n")
    write_card(tmp_path, str(base), "photos", REPORT, given)
    assert ModelCard.load(tmp_path / "README.md").data.license == license_id
    write_merge_card(tmp_path, "merged", str(base), str(tmp_path), 0.5)  # of two models of one license
    assert ModelCard.load(tmp_path / "README.md").data.license == (license_id if given is None else None)


@pytest.mark.parametrize(
    ("base", "tuned", "known"),
    [
        ("ViT-B/32", "org/tuned", ["openai/clip-vit-base-patch32", "org/tuned"]),
        ("RN50", "org/tuned", "org/tuned"),
        ("hf-hub:laion/clip", "org/tuned@v1", "laion/clip"),
        ("RN50", "RN50", None),
    ],
)
def test_a_merge_names_both_of_its_models(tmp_path: Path, base: str, tuned: str, known: list | str | None):
    write_merge_card(tmp_path, "merged", base, tuned, 0.3)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == known
    assert card.data.to_dict().get("base_model_relation") == (None if known is None else "merge")
    assert f"The weights of {tuned} (0.3) and {base} (0.7), averaged" in card.text
    assert 'ZeroShotClassifier.from_pretrained("merged", ' in card.text
