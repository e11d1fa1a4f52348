"""One rule for every verb that writes a file: the suffix is checked, and what exists is kept unless --force."""

from pathlib import Path

import pytest
from support.commands import run

VERBS = {
    "classify --plot": ["classify", "photos", "-l", "a,b", "-m", "nowhere", "--plot"],
    "where --plot": ["where", "photo.png", "a cat", "-m", "nowhere", "--plot"],
    "where --output": ["where", "photo.png", "a cat", "-m", "nowhere", "--output"],
    "search --html": ["search", "photos.index", "a cat", "--html"],
    "search --plot": ["search", "photos.index", "a cat", "--plot"],
    "evaluate zero-shot --output": ["evaluate", "zero-shot", "photos", "-m", "nowhere", "--output"],
    "evaluate retrieval --output": ["evaluate", "retrieval", "photos", "-m", "nowhere", "--output"],
    "evaluate probe --plot": ["evaluate", "probe", "photos", "photos", "-m", "nowhere", "--plot"],
    "evaluate benchmark --plot": ["evaluate", "benchmark", "imagenetv2", "-m", "nowhere", "--plot"],
}
SUFFIX = {"where --output": ".npz", "search --html": ".htm"}


@pytest.mark.parametrize("verb", VERBS)
def test_what_exists_is_kept(verb, tmp_path, monkeypatch, capsys):
    """A label file that stood behind the wrong option was replaced."""
    monkeypatch.chdir(tmp_path)
    suffix = SUFFIX.get(verb, ".json" if verb.endswith("output") else ".png")
    Path("labels.txt").write_text("a cat")
    assert run(*VERBS[verb], "labels.txt", "--force") == 1
    assert f"labels.txt should end in {'' if suffix == '.png' else suffix}" in capsys.readouterr().err
    file = Path(f"out{suffix}")
    file.write_text("mine")
    assert run(*VERBS[verb], file) == 1
    assert f"{file} exists: choose another output, or pass --force to replace it" in capsys.readouterr().err
    assert run(*VERBS[verb], file, "--force") == 1
    assert "exists" not in capsys.readouterr().err
    assert (Path("labels.txt").read_text(), file.read_text()) == ("a cat", "mine")
