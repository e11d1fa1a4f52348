"""Public names explain themselves: an imperative first line, and sections."""

import inspect
import re

import pytest

import hf_clip

PUBLIC = [name for name in hf_clip.__all__ if not name.startswith("__")]


def lacks(name: str) -> set[str]:
    """List what the docstring of a public name lacks."""
    value = getattr(hf_clip, name)
    text = inspect.getdoc(value) or ""
    if inspect.isclass(value) and issubclass(value, Exception):
        return set() if re.match(r"[A-Z].+\.$", text.splitlines()[0]) else {"a sentence"}
    asked = {"Args:", "Example:"}
    if inspect.isfunction(value):
        asked |= {"Raises:", "Yields:" if inspect.isgeneratorfunction(value) else "Returns:"}
    # an imperative: neither a noun phrase nor a third person such as "Computes"
    first = re.match(r"[A-Z][a-z]+(?<!s) ", text) and not re.match(r"(The|An?|All|Both|What|Whether) ", text)
    return {section for section in asked if section not in text} | (set() if first else {"an imperative first line"})


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_its_sections(name):
    assert lacks(name) == set()
