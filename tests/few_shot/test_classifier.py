"""A few-shot classifier is a zero-shot classifier with pictures in it."""

import dataclasses

import pytest
import torch
from support.data_sets import class_folders
from support.photos import load

from hf_clip import FewShotClassifier, ZeroShotClassifier
from hf_clip.data.read import read_rows
from hf_clip.data.rows import DataError
from hf_clip.few_shot import classifier as classifier_module
from hf_clip.few_shot.classifier import verdicts
from hf_clip.few_shot.fitting import fit_head
from hf_clip.few_shot.heads import FEW_SHOT_HEADS
from hf_clip.zero_shot.prompts import embed_labels
from hf_clip.zero_shot.scoring import zero_shot_logits


@pytest.fixture(autouse=True, scope="module")
def embed_once():
    """Each image goes once through each model."""
    embed, known = classifier_module.image_embeds, {}

    def image_embeds(model, processor, rows, **options):
        if new := [row for row in rows if (model, row.image.key) not in known]:
            found = embed(model, processor, dataclasses.replace(rows, rows=new), **options)
            known.update({(model, row.image.key): row_embeds for row, row_embeds in zip(new, found, strict=True)})
        return torch.stack([known[model, row.image.key] for row in rows])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_module, "image_embeds", image_embeds)
        yield image_embeds


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return read_rows(class_folders(tmp_path_factory.mktemp("few") / "photos", each=5))


@pytest.mark.parametrize("head", FEW_SHOT_HEADS)
def test_logits_are_the_blend_of_texts_and_pictures(repositories, family, photos, head, tmp_path, embed_once):
    model, processor = load(repositories[family])
    classifier = FewShotClassifier.fit(model, processor, photos, head=head)
    embeds = embed_once(model, processor, photos)
    texts = zero_shot_logits(model, embeds, embed_labels(model, processor, photos.labels, "a photo of a {}."))
    fitted = fit_head(texts, embeds, torch.tensor([row.label for row in photos]), head)
    expected = fitted.blend.of_texts * texts + fitted.blend.of_pictures * fitted.head(embeds)
    found = classifier.head.logits(model, embeds)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
    assert classifier.result.details["head"] == head
    classifier.save(tmp_path / "few.safetensors")
    loaded = ZeroShotClassifier.load(tmp_path / "few.safetensors", model, processor)
    assert torch.equal(loaded.head.logits(model, embeds), found)


@pytest.fixture(scope="module")
def fitted(repositories, photos):
    return FewShotClassifier.fit(*load(repositories["tiny ViT"]), photos)


def test_the_result_has_all_rows_and_an_interval(fitted):
    metrics = fitted.result.metrics
    assert metrics.keys() == {
        "acc1",
        "zero_shot_acc1",
        "linear_probe_acc1",
        *(f"{name}_acc1" for name in FEW_SHOT_HEADS),
    }
    assert fitted.result.details["held_out"] == 10
    assert fitted.result.main == ("acc1", metrics["acc1"])
    said = "\n".join(verdicts(fitted.result))
    assert "10 pictures held out are too few to tell it apart from: " in said


def test_the_only_picture_of_a_class_is_named(repositories, photos):
    few = dataclasses.replace(photos, rows=[*photos.rows, dataclasses.replace(photos.rows[0], label=2)])
    few = dataclasses.replace(few, labels=[*photos.labels, "odd one"])
    said = verdicts(FewShotClassifier.fit(*load(repositories["tiny ViT"]), few, head="prototypes").result)
    assert said[-1] == "not measured, as one picture is too few to hold it out: odd one"


def test_one_picture_each_is_said(repositories, photos):
    result = FewShotClassifier.fit(*load(repositories["tiny ViT"]), photos, shots=1).result
    [said] = verdicts(result)
    assert "the accuracy is unknown" in said
    assert result.metrics == {}


def same(rows):
    return [dataclasses.replace(row, image=rows[0].image) for row in rows]


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda rows: {"rows": rows[:5], "labels": ["one"]}, {}, DataError, "has one class, one: a classifier chooses"),
        (lambda rows: {"rows": rows[:5]}, {}, DataError, "has no picture of red circle: give one, or leave"),
        (lambda rows: {"rows": same(rows)}, {}, ValueError, "the 10 embeddings of .* are all equal"),
        (lambda rows: {}, {"head": "forest"}, ValueError, "head is 'forest': choose auto, prototypes, ridge"),
        (lambda rows: {}, {"folds": 1}, ValueError, "folds is 1: give at least 2"),
        (lambda rows: {}, {"shots": 6}, DataError, "blue square has 5 images in .*: choose fewer shots"),
        (lambda rows: {}, {"labels": ["a"]}, DataError, "has 2 classes, 1 labels are given"),
    ],
)
def test_bad_input_is_one_sentence(repositories, photos, change, options, error, message):
    rows = dataclasses.replace(photos, **change(photos.rows))
    with pytest.raises(error, match=message) as raised:
        FewShotClassifier.fit(*load(repositories["tiny ViT"]), rows, **options)
    assert "\n" not in str(raised.value)
