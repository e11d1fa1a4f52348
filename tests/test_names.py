"""One word for one thing: no public name of hf_clip is defined in two modules."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_clip.cli.app import GROUPS, VERBS

PACKAGE = Path(__file__).parents[1] / "hf_clip"
VERB_NAMES = {
    verb.__name__ for verbs in (VERBS, *(commands for _, commands in GROUPS.values())) for verb in verbs.values()
}
# every module has its own, under the name that the documentation of Python, and of Typer and Ray, gives it
EXEMPT = {"logger", "app"}


def names_of(module: str) -> Iterator[str]:
    """Yield the names that a module defines: functions, classes, constants and types, but not what it imports."""
    for node in ast.parse(module).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def repeated_names(package: Path) -> dict[str, list[str]]:
    """Find the public names that several modules define, with the paths of these modules."""
    found = defaultdict(list)
    for file in sorted(package.rglob("*.py")):
        path = file.relative_to(package).as_posix()
        for name in set(names_of(file.read_text(encoding="utf-8"))) - EXEMPT:
            is_verb = path.startswith("cli/") and name in VERB_NAMES
            if not name.startswith("_") and not is_verb:
                found[name].append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def test_no_name_is_defined_in_two_modules():
    assert repeated_names(PACKAGE) == {}, "rename all but one of each"


@pytest.mark.parametrize(
    "source", ["def twice(): ...", "class twice: ...", "twice = 1", "twice: int = 1", "a, twice = 1, 2"]
)
def test_every_kind_of_definition_counts(source, tmp_path):
    (tmp_path / "cli").mkdir()
    for path, text in {"one.py": source, "cli/two.py": source, "three.py": "from .one import twice"}.items():
        (tmp_path / path).write_text(text)
    assert repeated_names(tmp_path)["twice"] == ["cli/two.py", "one.py"]


def test_a_verb_may_have_the_name_of_its_function(tmp_path):
    (tmp_path / "cli").mkdir()
    for path in ("convert.py", "cli/convert.py"):
        (tmp_path / path).write_text("def convert(): ...")
    assert repeated_names(tmp_path) == {}
