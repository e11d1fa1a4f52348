"""The transformers that a repository's code asks for is the one that the package asks for."""

from pathlib import Path

from hf_clip.model.requirement_hf_clip import LOWEST_TRANSFORMERS, older_transformers

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_lowest_version_is_that_of_the_package():
    assert f'"transformers>={LOWEST_TRANSFORMERS}"' in PROJECT.read_text(encoding="utf-8")
    assert f"needs transformers {LOWEST_TRANSFORMERS} or later" in str(older_transformers())
