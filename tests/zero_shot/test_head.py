"""Modes, the terms of a head, its file, and decisions by its scores."""

import copy
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.plain import LABELS, load

from hf_clip.embedding.identity import OtherModelError
from hf_clip.zero_shot.calibration import calibrate_head, targets_of
from hf_clip.zero_shot.classifier import ZeroShotClassifier
from hf_clip.zero_shot.decisions import decide
from hf_clip.zero_shot.head import NONE_LABEL, ClassifierHead, load_head, make_head

MODEL = SimpleNamespace(logit_scale=torch.tensor(3.0))


def unit(rows: int, seed: int, dim: int = 8) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.manual_seed(seed)), dim=-1)


def made(mode: str, **fields) -> ClassifierHead:
    background = {} if mode == "one" else {"background": ["x", "y"], "background_embeds": unit(2, 1)}
    return ClassifierHead(["cat", "dog", "bird"], ["{}"], unit(3, 0), mode, **background, **fields)


def test_scores_are_the_published_formulas():
    images, scale = unit(5, 2), MODEL.logit_scale.exp()
    labels, background = scale * images @ unit(3, 0).T, scale * images @ unit(2, 1).T
    every = torch.cat([labels, background], 1).softmax(-1)  # NegLabel: each negative text is a class
    expected = {
        "one": labels.softmax(-1),
        "any": torch.cat([every[:, :3], every[:, 3:].sum(1, keepdim=True)], 1),
        # LERF's relevancy: the smallest of the pairwise softmaxes
        "each": torch.stack([torch.stack([labels, background[:, [k]].expand(-1, 3)]).softmax(0)[0] for k in (0, 1)])
        .min(0)
        .values,
    }
    for mode, scores in expected.items():
        head = made(mode)
        torch.testing.assert_close(head.scores(head.evidence(MODEL, images)), scores)
        assert len(head.columns) == scores.shape[1]


def test_terms_of_fitted_heads_are_added():
    images, scale = unit(5, 2), MODEL.logit_scale.exp()
    keys, values, bias = unit(4, 3), torch.rand(4, 3), torch.rand(3)
    head = made("one", bias=bias, keys=keys, values=values, sharpness=5.5)
    cache = torch.exp(-5.5 * (1 - images @ keys.T)) @ values
    torch.testing.assert_close(head.logits(MODEL, images), scale * images @ unit(3, 0).T + bias + cache)


@pytest.mark.parametrize("mode", ["one", "any", "each"])
def test_a_file_holds_all_of_a_head(tiny, tmp_path, mode):
    classifier = ZeroShotClassifier(tiny.model, tiny.processor, LABELS, mode=mode, background=["thing", "sky"])
    dim = classifier.class_embeds.shape[1]
    terms = {"bias": torch.rand(4), "keys": unit(6, 0, dim), "values": torch.rand(6, 4), "sharpness": 2.5}
    head = replace(classifier.head, **terms)
    targets = targets_of(LABELS, LABELS * 6)
    evidence = torch.randn(24, 4 + (mode != "one"), generator=torch.manual_seed(0))
    evidence[:, :4] += 3 * targets
    head = replace(calibrate_head(head, evidence, targets, recall=0.5), exif="apply")
    head.save(tmp_path / "saved.safetensors", tiny.model, tiny.processor)
    loaded = load_head(tmp_path / "saved.safetensors", tiny.model, tiny.processor)
    assert torch.equal(loaded.scores(evidence), head.scores(evidence))
    assert torch.equal(loaded.least_scores(), head.least_scores())
    assert loaded.calibration.report == head.calibration.report
    assert loaded.exif == "apply"
    images = unit(3, 1, dim)
    assert torch.equal(loaded.evidence(tiny.model, images), head.evidence(tiny.model, images))
    assert (loaded.labels, loaded.templates, loaded.background) == (head.labels, head.templates, head.background)


def test_earlier_files_damaged_ones_and_those_of_another_model(tiny, folders, tmp_path):
    path = tmp_path / "saved.safetensors"
    ZeroShotClassifier(tiny.model, tiny.processor, LABELS).save(path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    earlier = {name: metadata[name] for name in ("labels", "templates", "model", "dtype")}
    save_file(tensors, path, earlier | {"format": "hf_clip class embeddings 1"})
    assert load_head(path, tiny.model, tiny.processor).mode == "one"
    other = load(folders["tiny ResNet"])
    with pytest.raises(OtherModelError, match="tiny ViT"):
        load_head(path, other.model, other.processor)
    changed = copy.deepcopy(tiny.model)
    with torch.no_grad():
        changed.vision_model.post_layernorm.weight[:8] *= 3
    # embeddings of texts serve any image tower, what was learned from images serves its own
    plain = load_head(path, changed, tiny.processor)
    assert not plain.has_learned
    replace(plain, bias=torch.zeros(4)).save(tmp_path / "learned.safetensors", tiny.model, tiny.processor)
    assert load_head(tmp_path / "learned.safetensors", tiny.model, tiny.processor).has_learned
    with pytest.raises(OtherModelError, match="tiny ViT"):
        load_head(tmp_path / "learned.safetensors", changed, tiny.processor)
    for change, message in (
        ({"labels": '["cat"]'}, "is damaged: class_embeds is"),
        ({"mode": "any"}, "is damaged: the mode 'any' does not fit its background"),
        ({"calibration": '{"temperature": 0}'}, "is damaged"),
        ({"labels": "[", "mode": "one"}, "is damaged"),
        ({"exif": "turn"}, "is damaged: exif is 'turn'"),
    ):
        save_file(tensors, path, metadata | change)
        with pytest.raises(ValueError, match=message):
            load_head(path, tiny.model, tiny.processor)


HOSTILE = {
    **{f"{name} {text[:9]}": ({name: text}, {}) for name in ("labels", "templates", "background", "calibration")
       for text in ("5", "null", '"abc"', "[null]", "[[1]]", "NaN", "[" * 100_000, '[{"a": 1}]')},
    "a label twice": ({"labels": '["cat", "cat", "dog", "car"]'}, {}),
    **{f"sharpness {value}": ({"sharpness": value}, {}) for value in ("nan", "inf", "-1", "1e300", "x")},
    **{f"class_embeds {dtype}": ({}, {"class_embeds": lambda x, dtype=dtype: x.to(dtype)})
       for dtype in (torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.float8_e4m3fn)},
    "huge numbers": ({}, {"class_embeds": lambda x: x * 0 + 3e38}),
    "not finite": ({}, {"class_embeds": lambda x: x * float("nan")}),
    "no class_embeds": ({}, {"class_embeds": None}),
    "a probe that is a number": ({}, {"probe": lambda x: x[0, 0]}),
    "keys alone": ({}, {"keys": lambda _: torch.rand(5, 64)}),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_of_a_stranger_is_refused_in_one_sentence(tiny, what, tmp_path):
    path = tmp_path / "saved.safetensors"
    ZeroShotClassifier(tiny.model, tiny.processor, LABELS, class_embeds=unit(4, 0, 64)).save(path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fields, changes = HOSTILE[what]
    tensors |= {name: change and change(tensors.get(name)) for name, change in changes.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}, path, metadata | fields
    )
    with pytest.raises(ValueError, match=r"saved\.safetensors is (damaged|no safetensors file)") as refused:
        load_head(path, tiny.model, tiny.processor)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "all"}, "mode is 'all': choose one, any or each"),
        ({"mode": "any", "background": ["cat"]}, "'cat' is a label and in the background"),
        ({"mode": "each", "background": []}, "background is empty"),
        ({"mode": "any", "labels": [NONE_LABEL]}, "is added to the labels by the mode any"),
    ],
)
def test_wrong_modes_and_backgrounds(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        make_head(tiny.model, tiny.processor, **{"labels": LABELS, **options})


@pytest.mark.parametrize(
    ("mode", "scores", "threshold", "labels", "margin", "reason"),
    [
        ("one", [0.5, 0.3, 0.2], None, ["cat"], 0.2, "'cat' leads 'dog' by 0.20"),
        ("one", [0.5, 0.3, 0.2], 0.6, [], 0.1, "'cat' is best with 0.50, its threshold is 0.60"),
        ("one", [0.5, 0.3, 0.2], 0.45, ["cat"], 0.05, "'cat' leads 'dog' by 0.20"),
        ("any", [0.2, 0.2, 0.1, 0.5], None, [], 0.3, "'none of these' leads 'cat' by 0.30"),
        ("any", [0.2, 0.5, 0.1, 0.2], None, ["dog"], 0.3, "'dog' leads 'cat' by 0.30"),
        ("each", [0.9, 0.1, 0.8], None, ["cat", "bird"], 0.3, "2 of 3 labels .* 'bird', 0.30 above"),
        ("each", [0.4, 0.1, 0.2], None, [], 0.1, "0 of 3 labels .* 'cat', 0.10 below"),
    ],
)
def test_decisions(mode, scores, threshold, labels, margin, reason):
    head = made(mode)
    decision = decide(head, torch.tensor(scores), head.least_scores(threshold))
    assert decision.labels == labels
    assert decision.margin == pytest.approx(margin, abs=1e-6)
    assert re.fullmatch(reason, decision.reason)
    assert decision.scores[0]["score"] == pytest.approx(max(scores))


def test_a_threshold_is_a_probability():
    with pytest.raises(ValueError, match="threshold is 2"):
        made("one").least_scores(2)
