"""Calibration of simulated scores, whose truth is known; no model computes here."""

import pytest
import torch

from hf_clip.zero_shot.calibration import calibrate_head, targets_of
from hf_clip.zero_shot.head import ClassifierHead

LABELS = ["cat", "dog", "bird"]


def head(mode: str = "one", labels: list[str] = LABELS) -> ClassifierHead:
    """A head with embeddings that nobody looks at: tests give the evidence."""
    embeds = torch.eye(len(labels), 8)
    background = {} if mode == "one" else {"background": ["thing"], "background_embeds": torch.eye(1, 8)}
    return ClassifierHead(labels, ["{}"], embeds, mode, **background)


def drawn(mode: str, count: int, temperature: float, offsets: list[float], seed: int = 0):
    """Draw logits and, by the probabilities that they have after temperature and offsets, labels."""
    generator = torch.Generator().manual_seed(seed)
    columns = len(LABELS) + (mode != "one")
    evidence = 4 * torch.randn(count, columns, generator=generator)
    if mode == "each":
        scores = ((evidence[:, :-1] - evidence[:, -1:]) / temperature + torch.tensor(offsets)).sigmoid()
        return evidence, torch.rand(scores.shape, generator=generator) < scores
    places = torch.multinomial((evidence / temperature + torch.tensor(offsets)).softmax(-1), 1, generator=generator)
    return evidence, torch.nn.functional.one_hot(places[:, 0], columns)[:, : len(LABELS)].bool()


@pytest.mark.parametrize(
    ("mode", "offsets"), [("one", [0.0, 0, 0]), ("any", [0.0, 0, 0, 1.5]), ("each", [-1.0, -1.0, -1.0])]
)
def test_finds_temperature_and_shared_offsets(mode, offsets):
    evidence, targets = drawn(mode, 3000, 2.5, offsets)
    calibration = calibrate_head(head(mode), evidence, targets).calibration
    assert calibration.temperature == pytest.approx(2.5, rel=0.1)
    assert calibration.background_weight == pytest.approx(1, abs=0.15)
    assert calibration.offsets.tolist() == pytest.approx(offsets, abs=0.25)
    error = calibration.report["error"]
    assert error["after"] < 0.03 < 0.05 < error["before"]


def test_a_background_that_tells_nothing_is_left_out():
    generator = torch.Generator().manual_seed(0)
    evidence = 4 * torch.randn(2000, len(LABELS) + 1, generator=generator)
    truth = torch.cat([evidence[:, :-1], torch.full((2000, 1), 1.5)], 1).softmax(-1)
    places = torch.multinomial(truth, 1, generator=generator)[:, 0]
    targets = torch.nn.functional.one_hot(places, len(LABELS) + 1)[:, : len(LABELS)].bool()
    calibration = calibrate_head(head("any"), evidence, targets).calibration
    assert calibration.background_weight == pytest.approx(0, abs=0.1)
    assert calibration.offsets[-1].item() == pytest.approx(1.5, abs=0.25)
    assert any("tell little about these images" in note for note in calibration.report["notes"])


def test_labels_get_offsets_where_the_images_allow():
    evidence, targets = drawn("one", 1000, 1.0, [2.0, 0, -1])
    calibration = calibrate_head(head(), evidence, targets).calibration
    assert calibration.report["own_offsets"]
    offsets = calibration.offsets - calibration.offsets[1]
    assert offsets.tolist() == pytest.approx([2, 0, -1], abs=0.4)
    same = calibrate_head(head(), *drawn("one", 1000, 1.0, [0.0, 0, 0])).calibration
    assert same.offsets.abs().max() < 0.25
    few = calibrate_head(head(), evidence[:12], targets[:12]).calibration
    assert not few.offsets.any()
    notes = " ".join(few.report["notes"])
    assert "labels have fewer than 10 images" in notes
    assert "the error after calibration is not known" in notes


def test_images_that_are_all_told_apart_do_not_make_scores_certain():
    evidence, targets = 10 * torch.eye(3).repeat(4, 1), torch.eye(3).bool().repeat(4, 1)
    calibrated = calibrate_head(head(), evidence, targets)
    assert 0.1 < calibrated.calibration.temperature < 10


@pytest.mark.parametrize("mode", ["one", "any", "each"])
def test_thresholds_keep_their_promise_on_new_images(mode):
    """Each is assured with 95 % confidence; tests/metrics counts how often that fails."""
    offsets = {"one": [0.0] * 3, "any": [0.0] * 4, "each": [-1.0] * 3}[mode]
    new, truth = drawn(mode, 5000, 2.0, offsets, seed=99)
    evidence, targets = drawn(mode, 300, 2.0, offsets)
    for kind, wanted in (("precision", 0.7), ("recall", 0.3)):
        calibrated = calibrate_head(head(mode), evidence, targets, **{kind: wanted})
        assert calibrated.calibration.report["thresholds"]["all"]["assured"]
        scores = calibrated.scores(new)
        taken = scores[:, :3] >= calibrated.least_scores()
        if mode != "each":
            taken &= scores[:, :3] == scores.max(1, keepdim=True).values
        share = (taken & truth).sum() / (taken if kind == "precision" else truth).sum()
        assert wanted <= share < wanted + 0.2


def test_few_images_assure_nothing_and_say_so():
    evidence, targets = drawn("each", 12, 1.0, [0.0] * 3)
    report = calibrate_head(head("each"), evidence, targets, precision=0.9).calibration.report
    assert not report["thresholds"]["all"]["assured"]
    assert any("cannot assure a precision of 0.9: at least 29 are needed" in note for note in report["notes"])
    no_none = drawn("any", 60, 1.0, [0.0, 0, 0, -50])
    notes = calibrate_head(head("any"), *no_none).calibration.report["notes"]
    assert any("how often 'none of these' is right is not known" in note for note in notes)


@pytest.mark.parametrize(
    ("mode", "labels", "shown", "message"),
    [
        ("one", ["cat"], ["cat", "cat"], "nothing to calibrate with one label"),
        ("one", LABELS, ["cat", None], "image 1 shows none of the labels: take the mode any or each"),
        ("any", LABELS, ["cat", ["cat", "dog"]], "image 1 shows several labels: take the mode each"),
        ("one", LABELS, ["cat", "horse"], "image 1 shows 'horse', which is none of the 3 labels: cat, dog, bird"),
        ("one", LABELS, ["cat"], "1 images calibrate nothing"),
        ("each", LABELS, [None, None], "all images show all labels, or none shows any"),
        ("one", ["cat", "cat"], ["cat", "cat"], "a label is given twice"),
    ],
)
def test_labels_that_calibrate_nothing(mode, labels, shown, message):
    evidence = torch.randn(len(shown), len(labels) + (mode != "one"))
    with pytest.raises(ValueError, match=message):
        calibrate_head(head(mode, labels), evidence, targets_of(labels, shown))


def test_scores_that_calibrate_nothing():
    targets = targets_of(LABELS, ["cat", "dog", "cat"])
    for evidence, message in (
        (torch.ones(3, 3), "all images have the same scores"),
        (torch.full((3, 3), torch.nan), "NaN or infinite"),
        (torch.ones(4, 3), "4 images have labels of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate_head(head(), evidence, targets)
    evidence = torch.randn(3, 3)
    with pytest.raises(ValueError, match="precision and recall are both given"):
        calibrate_head(head(), evidence, targets, precision=0.9, recall=0.9)
    with pytest.raises(ValueError, match=r"the wanted share is 1.5"):
        calibrate_head(head(), evidence, targets, precision=1.5)
    with pytest.raises(ValueError, match=r"no threshold reaches a recall of 0.99"):
        calibrate_head(head(), -targets.float(), targets, recall=0.99)


@pytest.mark.parametrize("mode", ["one", "any"])
def test_sets_hold_the_right_answer_in_the_promised_share_of_images(mode):
    """Also where the scores are far too sure, and for each label by itself where that is asked for."""
    offsets = [1.5, 0.0, -1.5] if mode == "one" else [1.5, 0.0, -1.5, 0.5]
    evidence, targets = drawn(mode, 4000, 3.0, offsets)
    places = torch.where(targets.any(1), targets.int().argmax(1), 3)
    calibrated = calibrate_head(head(mode), evidence[:1000], targets[:1000])
    names = calibrated.columns
    shares = {}
    for per_class in (False, True):
        found = calibrated.sets(evidence[1000:], 0.2, per_class)
        hits = torch.tensor([names[place] in kept for place, kept in zip(places[1000:].tolist(), found, strict=True)])
        assert 0.76 < hits.double().mean() < 0.84
        shares[per_class] = [hits[places[1000:] == place].double().mean().item() for place in range(len(names))]
    spread = {per_class: max(values) - min(values) for per_class, values in shares.items()}
    assert spread[True] < 0.1 < spread[False]


def test_sets_that_cannot_be_had():
    evidence, targets = drawn("one", 30, 1.0, [0.0] * 3)
    calibrated = calibrate_head(head(), evidence, targets)
    assert calibrated.sets(evidence[:1], 0.01) == [[LABELS[place] for place in evidence[0].argsort(descending=True)]]
    with pytest.raises(ValueError, match="alpha is 1: give a share between 0 and 1"):
        calibrated.sets(evidence, 1)
    with pytest.raises(ValueError, match="need labeled images: call calibrate first"):
        head().sets(evidence, 0.1)
    each = calibrate_head(head("each"), *drawn("each", 30, 1.0, [0.0] * 3))
    with pytest.raises(ValueError, match="calibrate in the mode one or any"):
        each.sets(evidence, 0.1)
