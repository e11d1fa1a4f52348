import numpy as np
import pytest

from hf_clip.metrics.outcomes import Outcomes, bootstrap_difference


def test_a_mean_over_groups_leaves_out_groups_without_trials():
    outcomes = Outcomes.of([1, 0, 1, 1], groups=np.array([0, 0, 5, 9]))
    assert outcomes.mean == pytest.approx((0.5 + 1 + 1) / 3)
    assert outcomes._means(np.array([[2.0, 2, 0, 0], [0, 1, 3, 0]])).tolist() == [0.5, 0.5]
    assert Outcomes.of([2, 1], trials=np.array([4, 2])).mean == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 5])
def test_intervals_cover_the_true_difference(groups):
    """95 % intervals hold the true difference in 93 to 97 % of 1,000 simulated data sets."""
    rng, images, covered = np.random.default_rng(0), 300, 0
    sample = rng.random(4_000_000) + rng.normal(0, 0.3, 4_000_000)
    truth = np.mean(sample < 0.7) - np.mean(sample < 0.6)
    for _ in range(1000):
        hard = rng.random(images)
        first, second = ((hard + rng.normal(0, 0.3, images)) < place for place in (0.6, 0.7))
        classes = rng.integers(0, groups, images)
        _, low, high = bootstrap_difference(Outcomes.of(first, classes), Outcomes.of(second, classes), draws=400)
        covered += low <= truth <= high
    assert 930 <= covered <= 970


def test_equal_models_do_not_differ():
    hits = Outcomes.of(np.arange(50) % 3 == 0)
    assert bootstrap_difference(hits, hits) == (0, 0, 0)
    with pytest.raises(ValueError, match="saw 50 and 2 images"):
        bootstrap_difference(hits, Outcomes.of([1, 0]))
