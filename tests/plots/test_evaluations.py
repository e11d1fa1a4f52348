import pytest
from PIL import Image

from hf_clip.evaluation.suite import Comparison
from hf_clip.plots.evaluations import draw_benchmark, draw_evaluation

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


def test_guessing_is_a_line(tmp_path):
    for name in DETAILS:
        draw_evaluation("x", {name: DETAILS[name]}, tmp_path / "out.svg", chance=0.25)
        drawn = (tmp_path / "out.svg").read_text()
        assert ("<!-- chance" in drawn) is (name != "confusions")
    draw_benchmark({"m": [Comparison("x", "acc1", 0.5, None, "4 images", 0.25)]}, None, tmp_path / "out.svg")
    drawn = (tmp_path / "out.svg").read_text()
    assert "<!-- chance -->" in drawn
    assert "<!-- 4 images -->" in drawn


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="the result of x has nothing to draw"):
        draw_evaluation("x", {"confusions": []}, tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_a_benchmark_marks_what_is_off(tmp_path):
    """Beside the dots: each data set with its metric, and differences beyond the tolerance."""
    rows = [
        Comparison("x_$1", "acc1", 0.5, 0.501),
        Comparison("y", "acc1", 0.9, 0.8),
        Comparison("z", "acc1", 0.1, None),
    ]
    draw_benchmark({"models/a_$b": rows}, 0.002, tmp_path / "out.svg")
    drawn = (tmp_path / "out.svg").read_text()
    for text in ("a_$b", "x_$1", "+0.1000", "z"):
        assert f"<!-- {text} -->" in drawn
    assert "0.0010" not in drawn
    assert "published" in drawn
    draw_benchmark({"a": rows[2:], "b": rows[2:]}, 0.002, tmp_path / "out.svg")
    assert "published" not in (tmp_path / "out.svg").read_text()
