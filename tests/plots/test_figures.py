import warnings

import pytest
from matplotlib.figure import Figure

from hf_clip.plots.figures import save_figure, supported_suffixes


def test_the_suffix_names_the_format(tmp_path):
    assert {".png", ".svg", ".pdf"} <= supported_suffixes()
    save_figure(Figure(), tmp_path / "out.svg")
    assert "<svg" in (tmp_path / "out.svg").read_text()


def test_characters_are_drawn_by_fonts_that_have_them(tmp_path, caplog):
    """The default font lacks a letter that another one of matplotlib has; what no font has is named once."""
    figure = Figure()
    axis = figure.subplots()
    axis.set_yticks([0, 1], ["plain", "\u1d81"])
    axis.set_title("\u1d81 \U0010fffd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "out.svg")
    assert len(axis.title.get_fontfamily()) == len(axis.get_yticklabels()[1].get_fontfamily()) == 2
    assert "no font here has" in caplog.text
    assert "1d81" not in caplog.text


def test_a_failure_on_the_way_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    def stopped(figure, path, **_):
        path.write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", stopped)
    (tmp_path / "out.svg").write_text("before")
    with pytest.raises(OSError, match="full"):
        save_figure(Figure(), tmp_path / "out.svg")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.svg", "before")]
