import pytest
import torch

from hf_clip.metrics import threshold_for_precision, threshold_for_recall
from hf_clip.metrics.thresholds import images_needed


def simulated(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores whose share of hits is the score."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator, dtype=torch.double)
    return scores, torch.rand(count, generator=generator) < scores


def test_a_promised_precision_and_recall_hold_in_nearly_all_samples():
    """At a threshold t the true precision is (1 + t) / 2, the true recall 1 - t²."""
    broken, assured = {"precision": 0, "recall": 0}, 0
    for seed in range(100):
        scores, hits = simulated(400, seed)
        found = threshold_for_precision(scores, hits, 0.8)
        assured += found.assured
        broken["precision"] += found.assured and (1 + found.value) / 2 < 0.8
        found = threshold_for_recall(scores[hits], 0.8)
        assert found.assured
        broken["recall"] += 1 - found.value**2 < 0.8
    # 5 % of 100 are 5; more than 10 have a probability of 1 %
    assert max(broken.values()) <= 10
    assert assured >= 60
    assert broken["recall"] >= 1  # no more careful than needed


def test_equal_scores_are_taken_together():
    scores, hits = torch.tensor([0.9] * 50 + [0.2] * 50), torch.arange(100) < 50
    found = threshold_for_precision(scores, hits, 0.9)
    assert (found.value, found.count, found.assured) == (pytest.approx(0.9), 50, True)
    assert threshold_for_recall(torch.tensor([0.5] * 40), 0.9).value == 0.5


def test_few_images_assure_nothing():
    assert images_needed(0.9) == 29
    few = threshold_for_precision(torch.arange(20) / 20, torch.arange(20) >= 10, 0.9)
    assert not few.assured
    assert (few.count, few.share) == (11, pytest.approx(10 / 11))
    assert few.low < 0.7
    assert not threshold_for_recall(torch.arange(28) / 28, 0.9).assured
    assert threshold_for_recall(torch.arange(29) / 29, 0.9).assured
    half = torch.cat([torch.full((4,), -torch.inf), torch.arange(4.0)])
    found = threshold_for_recall(half, 0.3)  # three in eight, as the four cannot be taken
    assert (found.value, found.share, found.assured) == (1, 3 / 8, False)


def test_bad_input_is_refused_by_name():
    scores, hits = torch.tensor([0.1, 0.2]), torch.tensor([True, False])
    with pytest.raises(ValueError, match=r"no threshold reaches a precision of 0.9 on these images, the best is 0.500"):
        threshold_for_precision(scores, hits, 0.9)
    with pytest.raises(
        ValueError, match=r"no threshold reaches a recall of 0.9 on these images, without any it is 0.5"
    ):
        threshold_for_recall(torch.tensor([0.1, -torch.inf]), 0.9)
    for wanted in (0, 1, -1):
        with pytest.raises(ValueError, match="give one between 0 and 1"):
            threshold_for_recall(scores, wanted)
    with pytest.raises(ValueError, match="N > 0"):
        threshold_for_precision(scores, hits[:1], 0.5)
