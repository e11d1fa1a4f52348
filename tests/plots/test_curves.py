"""The picture of a training."""

from pathlib import Path

import pytest

from hf_clip.plots.curves import draw_curves

HISTORY = [
    {"step": 0, "eval_loss": 2.0, "eval_letters_acc1": 0.5},
    {"step": 1, "loss": 1.9, "learning_rate": 1e-5, "epoch": 1.0},
    {"step": 1, "eval_loss": 1.8, "eval_runtime": 3.0, "eval_mean_recall@1": 0.2, "eval_text_retrieval_recall@5": 1.0},
    {"step": 1, "eval_letters_acc1": 0.75},
]


def test_losses_and_shares_have_an_axis_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *given, **options: figures.append(figure) or save(figure, *given, **options)
    )
    draw_curves(HISTORY, tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 1000
    losses, shares = ({line.get_label(): list(line.get_ydata()) for line in axis.lines} for axis in figures[0].axes)
    assert all(tick == round(tick) for axis in figures[0].axes for tick in axis.get_xticks())
    assert losses == {"evaluation loss": [2.0, 1.8], "training loss": [1.9]}
    assert shares == {"letters_acc1": [0.5, 0.75], "mean_recall@1": [0.2]}
