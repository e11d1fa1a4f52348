"""SECURITY.md states the lowest versions of what parses foreign files; pyproject.toml holds them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", (ROOT / "SECURITY.md").read_text(), re.MULTILINE))
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_there_are_floors():
    assert FLOORS.keys() == {"Pillow", "fsspec", "pyarrow", "gradio"}


@pytest.mark.parametrize("package", FLOORS)
def test_every_requirement_has_the_floor(package):
    floors = set(re.findall(rf'"{package}(?:\[[\w,]+\])?>=([\d.]+)', PYPROJECT))
    assert floors == {FLOORS[package]}
    assert not re.search(rf'"{package}"', PYPROJECT)
