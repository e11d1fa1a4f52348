import math

import pytest
import torch

from hf_clip.metrics import conformal_quantile


@pytest.mark.parametrize(("count", "alpha"), [(19, 0.1), (50, 0.2), (7, 0.5)])
def test_coverage_is_what_the_theorem_says(count, alpha):
    """Over 1,000 splits, within the band that holds 99.9 % of an exact binomial distribution."""
    strangeness = torch.rand(1000, count + 1, generator=torch.Generator().manual_seed(count))
    covered = sum(row[-1].item() <= conformal_quantile(row[:-1], alpha) for row in strangeness)
    share = math.ceil(round((count + 1) * (1 - alpha), 9)) / (count + 1)
    chances = [math.comb(1000, k) * share**k * (1 - share) ** (1000 - k) for k in range(1001)]
    below = [sum(chances[:k]) for k in range(1001)]
    low = max(k for k in range(1001) if below[k] <= 0.0005)
    high = min(k for k in range(1000) if below[k + 1] >= 0.9995)
    assert low <= covered <= high
    assert share >= 1 - alpha


def test_few_images_exclude_nothing():
    assert conformal_quantile(torch.rand(8), 0.1) == math.inf
    assert conformal_quantile(torch.rand(9), 0.1) <= 1
    assert conformal_quantile(torch.zeros(0), 0.5) == math.inf


def test_bad_input_is_refused_by_name():
    for alpha in (0, 1, -0.1, 2):
        with pytest.raises(ValueError, match=f"alpha is {alpha}: give a share between 0 and 1"):
            conformal_quantile(torch.rand(8), alpha)
    with pytest.raises(ValueError, match="NaN"):
        conformal_quantile(torch.tensor([math.nan]), 0.5)
