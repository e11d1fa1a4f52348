import pytest
from matplotlib.figure import Figure

from hf_clip.plots.figures import save_figure, supported_suffixes


def test_the_suffix_names_the_format(tmp_path):
    assert {".png", ".svg", ".pdf"} <= supported_suffixes()
    save_figure(Figure(), tmp_path / "out.svg")
    assert "<svg" in (tmp_path / "out.svg").read_text()


def test_a_failure_on_the_way_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    def stopped(figure, path, **_):
        path.write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", stopped)
    (tmp_path / "out.svg").write_text("before")
    with pytest.raises(OSError, match="full"):
        save_figure(Figure(), tmp_path / "out.svg")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.svg", "before")]
