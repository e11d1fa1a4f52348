import pytest
from PIL import Image

from hf_clip.plots.evaluations import draw_evaluation

DETAILS = {
    "per_class_recall": {f"{place} class $x_{place}": place / 60 for place in range(60)},
    "confusions": [["a $", "b", 3], ["b", "a $", 2]],
    "recall": {"text": [[1, 0.2], [5, 1.0]], "image": [[1, 0.1], [5, 0.9]]},
    "sweep": [[1e-6, 0.2], [1.0, 0.9]],
}


def test_each_part_has_a_panel(tmp_path):
    widths = []
    for names in (["recall"], ["per_class_recall", "confusions"], list(DETAILS)):
        draw_evaluation("a_b $ c", {name: DETAILS[name] for name in names}, tmp_path / "out.png")
        widths.append(Image.open(tmp_path / "out.png").width)
    assert widths == [widths[0] * count for count in (1, 2, 4)]


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="the result of x has nothing to draw"):
        draw_evaluation("x", {"confusions": []}, tmp_path / "out.png")
    assert not list(tmp_path.iterdir())
