import pytest
import torch

from hf_clip.metrics import expected_calibration_error, reliability


def test_the_error_is_the_weighted_distance_of_bins():
    scores, hits = torch.tensor([0.1, 0.1, 0.95, 0.95, 1.0]), torch.tensor([0, 1, 1, 1, 0]).bool()
    # of two with 0.1 half hit, of three with 0.967 two thirds
    assert expected_calibration_error(scores, hits, bins=5) == pytest.approx((2 * 0.4 + 3 * 0.3) / 5)
    first, last = reliability(scores, hits, bins=5)
    assert (first["count"], first["share"], last["count"]) == (2, 0.5, 3)
    assert first["low"] < 0.5 < first["high"]


def test_calibrated_scores_have_little_error_and_sure_ones_have_much():
    scores = torch.rand(20_000, generator=torch.manual_seed(0))
    hits = torch.rand(20_000, generator=torch.manual_seed(1)) < scores
    assert expected_calibration_error(scores, hits) < 0.02
    assert expected_calibration_error(scores.sqrt(), hits) > 0.1


@pytest.mark.parametrize(
    ("scores", "message"), [([], "N > 0"), ([0.5, 0.5], "N > 0"), ([1.5], "go from 1.5 to"), ([torch.nan], "NaN")]
)
def test_bad_input_is_refused_by_name(scores, message):
    with pytest.raises(ValueError, match=message):
        reliability(torch.tensor(scores), torch.ones(min(len(scores), 1)).bool())
