"""Docstrings name their subject; those of public names have an imperative first line, and sections."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_clip

ROOT = Path(__file__).parents[1]
# a verb that tells nothing, a pronoun for a subject, or a clause in the place of a noun
RIDDLE = re.compile(
    r"^(Give|Hold|Say|Do|Stand|Let|What|That|Those|It|Which|Whether)s?\b|\bwhat\b|\bthose (that|which)\b"
)

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


def first_paragraphs(folder: Path) -> Iterator[tuple[str, str]]:
    """Find every docstring: where it stands, and its first paragraph."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and (text := ast.get_docstring(node)):
                name = f"{file.relative_to(ROOT)}:{getattr(node, 'name', 'module')}"
                yield name, " ".join(text.split("\n\n")[0].split())


@pytest.mark.parametrize("folder", ["hf_clip", "conversion", "model_cards", "benchmarks", "docs", "examples"])
def test_a_docstring_names_its_subject(folder):
    assert [f"{name}: {text}" for name, text in first_paragraphs(ROOT / folder) if RIDDLE.search(text)] == []


def test_riddles_are_found():
    assert RIDDLE.search("Give `values`, and take `count` more of them than were asked for.")
    assert RIDDLE.search("What of a source is to be done, found while its items are counted.")
    assert not RIDDLE.search("Compare token ids with the ids recorded from the original's tokenizer.")
