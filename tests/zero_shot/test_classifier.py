"""Zero-shot classification equals the plain path, encodes each text once, and reads images as they are needed."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.plain import LABELS, LONG_LABELS, load, plain_logits, plain_text_embeds, spy
from transformers import BertConfig, BertModel

from hf_clip import HFCLIPModel
from hf_clip.embedding.identity import OtherModelError
from hf_clip.embedding.images import embed_images
from hf_clip.embedding.texts import embed_texts
from hf_clip.zero_shot import head as head_module
from hf_clip.zero_shot.classifier import ZeroShotClassifier
from hf_clip.zero_shot.prompts import embed_labels

TEMPLATES = ["a photo of a {}.", "a blurry photo of the {} in the evening.", "{}"]
STOCK = "transformers"


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_equals_the_plain_path(any_clip, images):
    """To the bit where the operations are the same: texts of one length, images in one batch, hf_clip's logits."""
    expected = plain_logits(any_clip, images, LABELS, "a photo of a {}.")
    classifier = ZeroShotClassifier(any_clip.model, any_clip.processor, LABELS)
    logits = classifier.logits(images)
    if isinstance(any_clip.model, HFCLIPModel):
        assert torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    for answer, probabilities in zip(classifier(images, top_k=None), logits.softmax(-1), strict=True):
        assert [(row["label"], row["score"]) for row in answer] == sorted(
            zip(LABELS, probabilities.tolist(), strict=True), key=lambda pair: -pair[1]
        )


def test_texts_of_many_lengths(any_clip, images):
    expected = plain_logits(any_clip, images, LONG_LABELS, "{}")
    classifier = ZeroShotClassifier(any_clip.model, any_clip.processor, LONG_LABELS, "{}")
    torch.testing.assert_close(classifier.logits(images, batch_size=2, workers=2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.03)])
def test_half_precision(folders, family, images, tmp_path, dtype, tolerance):
    """What one precision saved serves another."""
    half, full = load(folders[family], dtype=dtype), load(folders[family])
    expected = plain_logits(full, images, LABELS, "a photo of a {}.")
    ZeroShotClassifier(full.model, full.processor, LABELS).save(tmp_path / "classes")
    made = ZeroShotClassifier(half.model, half.processor, LABELS)
    for classifier in (made, ZeroShotClassifier.load(tmp_path / "classes", half.model, half.processor)):
        logits = classifier.logits(images)
        assert logits.dtype == classifier.class_embeds.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)


def test_ensembles_by_the_mean_of_normalised_prompts(any_clip, images):
    expected = []
    for label in LONG_LABELS:
        mean = plain_text_embeds(any_clip, [template.format(label) for template in TEMPLATES]).mean(0)
        expected.append(mean / mean.norm())
    classifier = ZeroShotClassifier(any_clip.model, any_clip.processor, LONG_LABELS, TEMPLATES)
    torch.testing.assert_close(classifier.class_embeds, torch.stack(expected), rtol=0, atol=1e-6)


def test_top_k(tiny, images):
    classifier = ZeroShotClassifier(tiny.model, tiny.processor, LABELS)
    every = classifier(images, top_k=None)
    assert [len(answer) for answer in every] == [len(LABELS)] * len(images)
    assert classifier(images, top_k=2) == [answer[:2] for answer in every]
    assert classifier(images, top_k=9) == every
    # equal scores come in the order of the labels, as in the pipeline
    classifier.head = replace(classifier.head, class_embeds=classifier.class_embeds[:1].expand(len(LABELS), -1))
    assert [row["label"] for row in classifier(images[0], top_k=None)[0]] == LABELS


def test_a_label_given_twice_gets_its_score_twice(any_clip, images):
    twice = ZeroShotClassifier(any_clip.model, any_clip.processor, ["cat", "dog", "cat"])
    logits = twice.logits(images)
    assert torch.equal(logits[:, 0], logits[:, 2])
    assert [sorted(row["label"] for row in answer) for answer in twice(images)] == [["cat", "cat", "dog"]] * len(images)


# --- saved and loaded -------------------------------------------------------------------------------------------------


def test_save_and_load(any_clip, paths, tmp_path):
    saved = ZeroShotClassifier(any_clip.model, any_clip.processor, LONG_LABELS, TEMPLATES)
    saved.save(tmp_path / "new" / "classes.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["classes.safetensors"]
    loaded = ZeroShotClassifier.load(tmp_path / "new" / "classes.safetensors", any_clip.model, any_clip.processor)
    assert torch.equal(loaded.class_embeds, saved.class_embeds)
    assert (loaded.labels, loaded.templates) == (LONG_LABELS, TEMPLATES)
    assert loaded(paths) == saved(paths)


def test_loading_encodes_no_label(tiny, tmp_path, monkeypatch):
    ZeroShotClassifier(tiny.model, tiny.processor, LONG_LABELS).save(tmp_path / "classes")
    shapes = spy(monkeypatch, tiny.model, "get_text_features")
    ZeroShotClassifier.load(tmp_path / "classes", tiny.model, tiny.processor)
    assert [rows for rows, _ in shapes] == [1]


def test_embeddings_of_another_model_are_refused(folders, tmp_path):
    made, other = load(folders["tiny ViT"]), load(folders["tiny ResNet"])
    path = tmp_path / "classes"
    ZeroShotClassifier(made.model, made.processor, LABELS).save(path)
    with pytest.raises(OtherModelError, match=r"made by another model, '.*tiny ViT', than '.*tiny ResNet'"):
        ZeroShotClassifier.load(path, other.model, other.processor)
    tuned = copy.deepcopy(made.model)
    with torch.no_grad():
        tuned.text_model.encoder.layers[0].mlp.fc1.weight *= 1.05
    with pytest.raises(OtherModelError, match="tiny ViT"):
        ZeroShotClassifier.load(path, tuned, made.processor)


def test_files_that_hold_no_class_embeddings(tiny, tmp_path):
    (tmp_path / "text").write_text("no tensors")
    save_file({"class_embeds": torch.zeros(2, 64)}, tmp_path / "foreign")
    for name, error, message in (
        ("text", ValueError, "text is no safetensors file"),
        ("foreign", ValueError, "foreign holds no class embeddings"),
        ("missing", FileNotFoundError, "missing"),
    ):
        with pytest.raises(error, match=message):
            ZeroShotClassifier.load(tmp_path / name, tiny.model, tiny.processor)


def test_a_failed_save_leaves_what_was_there(tiny, tmp_path, monkeypatch):
    classifier = ZeroShotClassifier(tiny.model, tiny.processor, LABELS)
    classifier.save(tmp_path / "classes")
    before = (tmp_path / "classes").read_bytes()

    def fail(tensors, path, metadata):
        Path(path).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(head_module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        classifier.save(tmp_path / "classes")
    assert [path.name for path in tmp_path.iterdir()] == ["classes"]
    assert (tmp_path / "classes").read_bytes() == before


def test_from_pretrained(any_clip, paths):
    expected = ZeroShotClassifier(any_clip.model, any_clip.processor, LABELS, TEMPLATES)
    classifier = ZeroShotClassifier.from_pretrained(any_clip.folder, LABELS, TEMPLATES, device="cpu")
    assert type(classifier.model) is type(any_clip.model)
    assert classifier(paths) == expected(paths)
    assert (
        ZeroShotClassifier.from_pretrained(any_clip.folder, LABELS, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    )


def test_optimize(folders, monkeypatch):
    calls = []
    monkeypatch.setattr(HFCLIPModel, "optimize_for_inference", lambda self: calls.append(self), raising=False)
    classifier = ZeroShotClassifier.from_pretrained(folders["tiny ViT"], LABELS, optimize=True, dtype=torch.bfloat16)
    assert calls == [classifier.model]
    assert classifier.model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"CLIPModel has no optimize_for_inference\(\): leave optimize off"):
        ZeroShotClassifier.from_pretrained(folders[STOCK], LABELS, optimize=True)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], "{}", "labels is empty"),
        ("cat", "{}", "labels is a list of texts, not the one text 'cat'"),
        (LABELS, [], "templates is empty"),
        (LABELS, ["{}", "a photo of a cat"], "the template 'a photo of a cat' needs {}"),
        (LABELS, "a {label}", "the template 'a {label}' needs {}"),
        (LABELS, "a {", "the template 'a {' needs {}"),
        ([*LABELS, "word " * 100], "{}", "the text 'word word .* has 102 tokens, the model reads 77.* truncation=True"),
    ],
)
def test_wrong_labels_and_templates(any_clip, labels, templates, message):
    with pytest.raises(ValueError, match=message) as caught:
        ZeroShotClassifier(any_clip.model, any_clip.processor, labels, templates)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images is empty"),
        (iter(()), ValueError, "images is empty"),
        (7, TypeError, "not int"),
        (torch.zeros(2, 3, 40, 40), ValueError, "the images come 40x40 from the processor, the model reads 32x32"),
        ({"image": 1, "label": 2}, ValueError, "a batch needs pixel_values, this one has image, label"),
    ],
)
def test_wrong_images(tiny, images, error, message):
    with pytest.raises(error, match=message):
        ZeroShotClassifier(tiny.model, tiny.processor, LABELS).logits(images)


def test_wrong_parts(tiny, folders, paths):
    resnet = load(folders["tiny ResNet"])
    with pytest.raises(ValueError, match=r"come 64x64 from the processor, the model reads 32x32: use the processor of"):
        embed_images(tiny.model, resnet.processor, paths)
    uncropped = copy.deepcopy(tiny.processor)
    uncropped.image_processor.do_center_crop = False
    with pytest.raises(
        ValueError, match=r"come \d+x\d+ from the processor, the model reads 32x32: use the processor of"
    ):
        embed_images(tiny.model, uncropped, paths)
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=10))
    with pytest.raises(TypeError, match="BertModel has no get_image_features"):
        ZeroShotClassifier(bert, tiny.processor, LABELS)
    with pytest.raises(ValueError, match=r"training mode: call model.eval\(\)"):
        embed_images(copy.deepcopy(resnet.model).train(), resnet.processor, paths)
    with pytest.raises(ValueError, match="texts is empty"):
        embed_texts(tiny.model, tiny.processor, [])
    embeds = embed_labels(tiny.model, tiny.processor, ["word " * 100], "{}", truncation=True)
    assert embeds.shape == (1, 64)


def test_labels_and_templates_of_any_iterable(tiny, images):
    expected = ZeroShotClassifier(tiny.model, tiny.processor, LABELS, TEMPLATES).logits(images)
    classifier = ZeroShotClassifier(tiny.model, tiny.processor, (each for each in LABELS), (each for each in TEMPLATES))
    assert classifier.labels == LABELS
    assert torch.equal(classifier.logits(images), expected)


def test_one_label_is_said_to_tell_nothing(tiny, images, caplog):
    [[answer]] = ZeroShotClassifier(tiny.model, tiny.processor, ["only one"])(images[0])
    assert answer == {"label": "only one", "score": 1.0}
    assert "'only one' is the only label and scores 100 % whatever an image shows" in caplog.text
