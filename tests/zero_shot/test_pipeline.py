"""The pipeline answers as the stock one, and encodes its labels once."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_corpus import EXIF_ORIENTATION, random_image
from support.originals import FAMILIES
from support.threads import assert_threads_agree
from torch.utils.data import Dataset
from transformers import AutoModel, AutoProcessor, SiglipConfig, SiglipModel, pipeline
from transformers import ZeroShotImageClassificationPipeline as StockPipeline
from transformers.utils.logging import warning_once

from hf_clip.embedding.features import features
from hf_clip.embedding.identity import OtherModelError
from hf_clip.openai.convert import Layout, convert
from hf_clip.zero_shot import pipeline as pipeline_module
from hf_clip.zero_shot.cache import ClassEmbeddingCache, cache_key
from hf_clip.zero_shot.classifier import ZeroShotClassifier
from hf_clip.zero_shot.pipeline import ZeroShotImageClassificationPipeline

TASK = "zero-shot-image-classification"
LABELS = ["cat", "a very large and rather old lighthouse", "dog", "sailing boat"]
TEMPLATES = ["a photo of a {}.", "a blurry photo of the {} in the evening."]
STOCK = "transformers"


@pytest.fixture(scope="module", params=[*FAMILIES, STOCK])
def parts(request, archives, repositories, tmp_path_factory) -> dict:
    """What a pipeline is made of: both families of ours, and transformers' own CLIP."""
    folder = repositories.get(request.param)
    if folder is None:
        folder = tmp_path_factory.mktemp("stock") / "tiny"
        convert(str(archives["tiny ViT"]), folder, Layout.transformers, report=lambda _: None)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    return {"model": model, "tokenizer": processor.tokenizer, "image_processor": processor.image_processor}


@pytest.fixture
def pair(parts) -> SimpleNamespace:
    return SimpleNamespace(
        ours=pipeline(TASK, **parts, pipeline_class=ZeroShotImageClassificationPipeline),
        stock=pipeline(TASK, **parts),
    )


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    """One of them lies on its side."""
    folder, generator, exif = tmp_path_factory.mktemp("images"), np.random.default_rng(0), Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    for index, mode in enumerate(["RGB", "L", "P", "RGBA", "RGB"]):
        options = {"exif": exif} if index == 4 else {}
        random_image(mode, 40 + 7 * index, 90 - 9 * index, generator).save(folder / f"{index}.png", **options)
    return [str(path) for path in sorted(folder.iterdir())]


class Images(Dataset):
    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])


@pytest.fixture
def encoded(parts, monkeypatch) -> list[int]:
    """How many texts each call of the text tower got."""
    counts, encode = [], parts["model"].get_text_features

    def spied(**inputs):
        counts.append(len(inputs["input_ids"]))
        return encode(**inputs)

    monkeypatch.setattr(parts["model"], "get_text_features", spied)
    return counts


def assert_same(ours, stock, tolerance: float = 1e-5) -> None:
    """The same labels in the same order, and scores within `tolerance`."""
    if isinstance(stock[0], list):
        assert len(ours) == len(stock)
        for one, other in zip(ours, stock, strict=True):
            assert_same(one, other, tolerance)
        return
    assert [row["label"] for row in ours] == [row["label"] for row in stock]
    assert [set(row) for row in ours] == [{"label", "score"}] * len(stock)
    assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in stock], abs=tolerance)


def differ(one, other) -> bool:
    return {row["label"]: row["score"] for row in one} != {row["label"]: row["score"] for row in other}


@pytest.mark.parametrize(
    ("images", "options"),
    [
        pytest.param(lambda paths: Image.open(paths[2]), {}, id="one image"),
        pytest.param(lambda paths: paths[4], {"timeout": 5}, id="one path, turned by EXIF"),
        pytest.param(lambda paths: paths, {"hypothesis_template": "a {} in the fog"}, id="paths"),
        pytest.param(lambda paths: [Image.open(path) for path in paths], {"batch_size": 2}, id="batches"),
        pytest.param(lambda paths: (path for path in paths), {}, id="generator"),
        pytest.param(lambda paths: (path for path in paths), {"batch_size": 3}, id="generator in batches"),
        pytest.param(Images, {"batch_size": 2}, id="dataset"),
        pytest.param(Images, {"batch_size": 2, "num_workers": 2}, id="processes"),
        pytest.param(lambda paths: paths, {"candidate_labels": ["cat"]}, id="one label"),
        pytest.param(lambda paths: paths, {"candidate_labels": ["cat", "dog", "cat"]}, id="a label twice"),
        pytest.param(lambda paths: paths, {"candidate_labels": ("one", 1, 2.5)}, id="labels that are no texts"),
    ],
)
def test_answers_as_the_stock_pipeline(pair, paths, images, options):
    options = {"candidate_labels": LABELS, **options}
    ours, stock = pair.ours(images(paths), **options), pair.stock(images(paths), **options)
    assert type(ours) is list or type(stock) is not list
    assert_same(list(ours), list(stock))


def test_paths_of_pathlib(pair, paths):
    assert_same(pair.ours([Path(path) for path in paths], LABELS), pair.stock(paths, LABELS))
    assert_same(pair.ours(Path(paths[4]), LABELS), pair.stock(paths[4], LABELS))


def test_a_generator_of_labels(pair, paths):
    assert_same(pair.ours(paths, (label for label in LABELS)), pair.stock(paths, LABELS))


def test_one_label_is_said_to_tell_nothing(pair, paths, caplog):
    pair.ours(paths[:2], ["only one"])
    pair.ours(paths[0], ["only one"])
    assert caplog.text.count("'only one' is the only label and scores 100 % whatever an image shows") == 1


def test_made_by_name(repositories, family, paths):
    ours = pipeline(TASK, str(repositories[family]), pipeline_class=ZeroShotImageClassificationPipeline)
    assert type(ours) is ZeroShotImageClassificationPipeline
    assert isinstance(ours, StockPipeline)
    assert_same(ours(paths, LABELS), pipeline(TASK, str(repositories[family]))(paths, LABELS))


def test_half_precision(parts, paths):
    half = {**parts, "model": copy.deepcopy(parts["model"]).to(torch.bfloat16)}
    stock, ours = pipeline(TASK, **half), pipeline(TASK, **half, pipeline_class=ZeroShotImageClassificationPipeline)
    for one, other in zip(ours(paths, LABELS), stock(paths, LABELS), strict=True):
        scores = {row["label"]: row["score"] for row in other}
        # the stock pipeline rounds its logits to 8 bits
        assert {row["label"]: row["score"] for row in one} == pytest.approx(scores, abs=0.03)


def test_several_templates(pair, parts, paths):
    """As the classifier, which is tested against a reference."""
    processor = SimpleNamespace(**parts)
    classifier = ZeroShotClassifier(parts["model"], processor, LABELS, TEMPLATES)
    images = [Image.open(path).convert("RGB") for path in paths[:4]]
    ours = pair.ours(images, LABELS, hypothesis_template=TEMPLATES)
    assert_same(ours, classifier(images, top_k=None))
    assert_same(pair.ours(images, LABELS, hypothesis_template=TEMPLATES[:1]), pair.stock(
        images, LABELS, hypothesis_template=TEMPLATES[0]))  # fmt: skip


@pytest.mark.parametrize(
    "tokenizer_kwargs",
    [
        {"padding": "max_length", "max_length": 20},
        {"truncation": True, "max_length": 7},
    ],
)
def test_tokenizer_kwargs(pair, parts, paths, tokenizer_kwargs):
    """Where the stock pipeline drops them."""
    image = Image.open(paths[0])
    texts = [f"This is a photo of {label}." for label in LABELS]
    inputs = parts["tokenizer"](texts, return_tensors="pt", **{"padding": True, **tokenizer_kwargs})
    pixels = parts["image_processor"](images=[image.convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        expected = parts["model"](**inputs, **pixels).logits_per_image[0].softmax(-1).tolist()
    scores = {row["label"]: row["score"] for row in pair.ours(image, LABELS, tokenizer_kwargs=tokenizer_kwargs)}
    assert [scores[label] for label in LABELS] == pytest.approx(expected, abs=1e-5)
    made_with = pipeline(
        TASK, **parts, pipeline_class=ZeroShotImageClassificationPipeline, tokenizer_kwargs=tokenizer_kwargs
    )
    assert_same(made_with(image, LABELS), pair.ours(image, LABELS, tokenizer_kwargs=tokenizer_kwargs))


def test_labels_that_are_too_long(repositories, family, paths):
    """Cut with a warning by our tokenizer, as in the stock pipeline."""
    labels = ["cat", "lighthouse " * 100]
    ours = pipeline(TASK, str(repositories[family]), pipeline_class=ZeroShotImageClassificationPipeline)
    assert_same(ours(paths, labels), pipeline(TASK, str(repositories[family]))(paths, labels))


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_labels_are_encoded_once(pair, paths, encoded):
    pair.ours(paths, LABELS)
    pair.ours(paths, list(LABELS), batch_size=2, hypothesis_template="This is a photo of {}.")
    for image in paths:
        pair.ours(image, tuple(LABELS))
    list(pair.ours((path for path in paths), LABELS))
    assert encoded == [len(LABELS)]


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe, call: call["candidate_labels"].append("horse"),
        lambda pipe, call: call["candidate_labels"].reverse(),
        lambda pipe, call: call.update(candidate_labels=["horse", *LABELS[1:]]),
        lambda pipe, call: call.update(hypothesis_template="{}"),
        lambda pipe, call: call["hypothesis_template"].append("{}"),
        lambda pipe, call: call.update(tokenizer_kwargs={"truncation": True, "max_length": 5}),
        lambda pipe, call: pipe.model.load_state_dict(
            {k: v.flip(0) for k, v in pipe.model.state_dict().items() if v.ndim == 1}, strict=False
        ),
        lambda pipe, call: pipe.model.text_projection.weight.requires_grad_(False).mul_(-1),
        lambda pipe, call: setattr(pipe.model.text_projection, "weight", torch.nn.Parameter(torch.ones(64, 64))),
    ],
    ids=["added", "order", "label", "template", "templates", "tokenizer_kwargs", "loaded", "trained", "replaced"],
)
def test_what_has_changed_is_encoded_again(parts, paths, change):
    fresh = {**parts, "model": copy.deepcopy(parts["model"])}
    kept = pipeline(TASK, **fresh, pipeline_class=ZeroShotImageClassificationPipeline)
    call = {"candidate_labels": list(LABELS), "hypothesis_template": list(TEMPLATES)}
    before = kept(paths[0], **call)
    change(kept, call)
    new = pipeline(TASK, **fresh, pipeline_class=ZeroShotImageClassificationPipeline)
    after = kept(paths[0], **call)
    assert after == new(paths[0], **call)
    assert differ(before, after) or call["candidate_labels"] == LABELS[::-1]


def test_label_sets_in_turn_are_encoded_once_each(pair, paths, encoded):
    sets = [LABELS, LABELS[:2], LABELS[1:]]
    for labels in sets * 3:
        pair.ours(paths[0], labels)
    assert encoded == [len(labels) for labels in sets]


def test_the_weights_are_looked_at_once_a_call(pair, paths, monkeypatch):
    looks = []
    pair.ours(paths, LABELS)
    monkeypatch.setattr(pipeline_module, "cache_key", lambda *what: looks.append(1) or cache_key(*what))
    pair.ours(paths, LABELS, batch_size=1)
    assert len(looks) == 1


def test_the_cache_is_bounded(parts):
    cache = ClassEmbeddingCache(size=2)
    keys = {label: cache_key(parts["model"], parts["tokenizer"], [label], ["{}"], {}) for label in ("a", "b", "c")}
    made = []
    for label in ("a", "b", "a", "c", "a", "b"):
        cache.get(keys[label], lambda label=label: made.append(label) or torch.zeros(1))
    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2


def test_clearing_forgets_what_was_written_through_data(parts, paths):
    pipe = pipeline(
        TASK,
        **{**parts, "model": copy.deepcopy(parts["model"])},
        pipeline_class=ZeroShotImageClassificationPipeline,
    )
    before = pipe(paths[0], LABELS)
    pipe.model.text_projection.weight.data.mul_(-1)
    assert pipe(paths[0], LABELS) == before
    pipe.cache.clear()
    assert differ(pipe(paths[0], LABELS), before)


def test_a_key_keeps_no_weights_and_equals_none_in_their_place():
    model, tokenizer = torch.nn.Linear(2, 2), torch.nn.Identity()
    key = cache_key(model, tokenizer, ["a"], ["{}"], {})
    assert key == cache_key(model, tokenizer, ("a",), ("{}",), {})
    gone = ref(model.weight)
    del model.weight
    model.weight = torch.nn.Parameter(torch.zeros(2, 2))
    assert gone() is None
    assert key != cache_key(model, tokenizer, ["a"], ["{}"], {})


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "images is empty"),
        (None, {"candidate_labels": []}, "candidate_labels is empty"),
        (None, {"candidate_labels": "cat, dog"}, "candidate_labels is a list of texts, not the one text 'cat, dog'"),
        (None, {"hypothesis_template": "a photo"}, "the template 'a photo' needs {}"),
        (None, {"hypothesis_template": ["{}", "a photo"]}, "the template 'a photo' needs {}"),
        (None, {"hypothesis_template": []}, "templates is empty"),
    ],
)
def test_wrong_input(pair, paths, images, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        pair.ours(paths if images is None else images, **{"candidate_labels": LABELS, **options})
    assert "\n" not in str(caught.value)


def test_a_broken_image_is_named_by_number_and_file(pair, paths, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[0]).read_bytes()[:900])
    for broken in (str(cut), Image.open(cut)):
        for options in ({}, {"batch_size": 2}):
            with pytest.raises(OSError, match=r"^images\[2\].*cut.png.*truncated"):
                pair.ours([paths[0], paths[1], broken], candidate_labels=LABELS, **options)
        with pytest.raises(OSError, match=r"^image .*cut.png.*truncated"):
            pair.ours(broken, candidate_labels=LABELS)


def test_models_that_score_in_another_way_are_refused(parts):
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    siglip = SiglipModel(SiglipConfig(text_config=tower, vision_config={**tower, "image_size": 32, "patch_size": 16}))
    with pytest.raises(TypeError, match="SiglipModel scores with a bias"):
        ZeroShotImageClassificationPipeline(**{**parts, "model": siglip})


def test_threads_get_the_scores_of_their_own_labels(repositories, family):
    classifier = pipeline(
        "zero-shot-image-classification",
        model=str(repositories[family]),
        pipeline_class=ZeroShotImageClassificationPipeline,
    )
    image = random_image("RGB", 40, 30, np.random.default_rng(0))
    label_sets = (["a cat", "a dog"], ["a tree", "a house"], ["one", "two", "three"], ["a cat", "a dog", "a bird"])

    def answers(labels: list[str]) -> list[dict]:
        return classifier(image, candidate_labels=labels)

    assert_threads_agree(
        [partial(answers, labels) for labels in label_sets],
        lambda one, other: (
            [answer["label"] for answer in one] == [answer["label"] for answer in other]
            and np.allclose([answer["score"] for answer in one], [answer["score"] for answer in other], atol=1e-6)
        ),
    )


@pytest.mark.parametrize("mode", ["one", "any", "each"])
def test_a_saved_classifier_in_place_of_labels(parts, paths, tmp_path, caplog, mode):
    saved = ZeroShotClassifier(parts["model"], parts["tokenizer"], LABELS, TEMPLATES, mode=mode)
    saved.save(tmp_path / "saved.safetensors")
    image = Image.open(paths[0])
    embeds = features(parts["model"], "image", parts["image_processor"](images=[image], return_tensors="pt"))
    expected = saved.head.scores(saved.head.evidence(parts["model"], embeds))[0]
    names = [*LABELS, "none of these"] if mode == "any" else LABELS
    once = pipeline(TASK, **parts, pipeline_class=ZeroShotImageClassificationPipeline)
    always = pipeline(
        TASK, **parts, pipeline_class=ZeroShotImageClassificationPipeline, classifier=tmp_path / "saved.safetensors"
    )
    answers = [once(image, classifier=saved), once(image, classifier=tmp_path / "saved.safetensors"), always(image)]
    for answer in answers:
        assert {row["label"]: row["score"] for row in answer} == pytest.approx(
            dict(zip(names, expected.tolist(), strict=True)), abs=1e-6
        )
    assert_same(always(image, LABELS), once(image, LABELS))
    with pytest.raises(ValueError, match="candidate_labels and classifier, which has its own, are both given"):
        once(image, LABELS, classifier=saved)
    with pytest.raises(ValueError, match="candidate_labels is missing"):
        once(image)
    warning_once.cache_clear()
    for exif, said in (("apply", 0), ("ignore", 1)):
        saved.head = replace(saved.head, exif=exif)
        caplog.clear()
        once(image, classifier=saved)
        assert caplog.text.count("read with exif ignore, and pipelines turn photos") == said
    other = ZeroShotClassifier(copy.deepcopy(parts["model"]), parts["tokenizer"], LABELS)
    with pytest.raises(OtherModelError, match="classifier has another model object"):
        once(image, classifier=other)
