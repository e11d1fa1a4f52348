import pytest
import torch

from hf_clip import find_boxes
from hf_clip.localization.boxes import find_peak


def test_regions_by_their_highest_value():
    map = torch.full((40, 60), -0.2)
    map[5:15, 10:30] = 0.6
    map[25:35, 40:50] = 0.8
    map[30, 45] = 1.0
    map[:, 58:] = torch.nan
    map[39, 0] = 0.9  # a speck
    assert find_boxes(map) == [
        {"box": (40, 25, 50, 35), "score": pytest.approx(1.0)},
        {"box": (10, 5, 30, 15), "score": pytest.approx(0.6)},
    ]
    assert [found["box"] for found in find_boxes(map, threshold=0.7)] == [(40, 25, 50, 35)]


def test_corners_connect():
    map = torch.zeros(8, 8)
    map[:4, :4] = map[4:, 4:] = 1
    assert [found["box"] for found in find_boxes(map)] == [(0, 0, 8, 8)]


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan])
def test_a_map_without_a_positive_value_has_none(value):
    assert find_boxes(torch.full((4, 4), value)) == []


def test_the_peak_of_a_flat_corner_is_its_inner_end():
    map = torch.full((20, 30), -1.0)
    map[:8, :6] = torch.tensor(2.0)
    map[:, 25:] = torch.nan
    assert find_peak(map) == (5, 7)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="3 axes"):
        find_boxes(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="threshold is 50"):
        find_boxes(torch.zeros(2, 3), threshold=50)
