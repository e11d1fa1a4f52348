"""Who imports whom inside hf_clip: no circle, and no arrow that runs back up."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_clip"
# from the top to the bottom; a folder imports from folders of a lower level only, and from itself
LEVELS = [
    {"__main__"},
    {"cli"},
    {"app", "serving"},
    {"curation"},
    {"training", "export", "search", "localization", "few_shot"},
    {"evaluation"},
    {"zero_shot", "parity"},
    {"embedding", "metrics"},
    {"loading"},
    {"exported", "openai"},
    {"plots", "registration"},
    {"data"},
    {"model"},
    {"utils"},
]
LEVEL = {folder: level for level, folders in enumerate(LEVELS) for folder in folders}
# imports inside functions that may point up: (importing module, imported module)
UPWARD = {
    ("model.modeling_hf_clip_base", "model.inference_hf_clip"),
}

Arrow = tuple[str, str]


def modules(package: Path) -> dict[str, Path]:
    """Name every module by its path below the package; a folder's __init__ has the folder's name."""
    files = {file: file.relative_to(package).with_suffix("") for file in package.rglob("*.py")}
    return {".".join(path.parts).removesuffix("__init__").rstrip("."): file for file, path in files.items()}


def arrows(package: Path) -> tuple[set[Arrow], set[Arrow]]:
    """Find the imports between modules: those at import time, and those inside functions or for type checkers."""
    eager, lazy = set(), set()
    known = modules(package)
    for name, file in known.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        late = {id(node) for function in ast.walk(tree) if is_late(function) for node in ast.walk(function)}
        parts = name.split(".") if name else []
        here = parts if file.name == "__init__.py" else parts[:-1]
        for node in ast.walk(tree):
            for target in targets(node, here, known):
                (lazy if id(node) in late else eager).add((name, target))
    return eager, lazy


def is_late(node: ast.AST) -> bool:
    typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return typing or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def targets(node: ast.AST, here: list[str], known: dict[str, Path]) -> set[str]:
    """List the modules of the package that an import statement in the folder `here` reads."""
    if isinstance(node, ast.Import):
        names = [alias.name.removeprefix("hf_clip").lstrip(".") for alias in node.names if is_ours(alias.name)]
        return {name for name in names if name in known}
    if not isinstance(node, ast.ImportFrom) or not (node.level or is_ours(node.module or "")):
        return set()
    base = here[: len(here) - node.level + 1] if node.level else []
    module = (node.module or "").removeprefix("" if node.level else "hf_clip").lstrip(".")
    start = ".".join([*base, *filter(None, [module])])
    inner = {f"{start}.{alias.name}".lstrip(".") for alias in node.names}
    return inner & known.keys() or ({start} & known.keys())


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "hf_clip"


def folder(module: str) -> str:
    return module.split(".")[0]


def upward(found: set[Arrow]) -> set[Arrow]:
    """Select the arrows between folders that do not point down."""
    between = {(start, end) for start, end in found if folder(start) != folder(end) and start}
    return {(start, end) for start, end in between if LEVEL[folder(start)] >= LEVEL[folder(end)]}


def check_acyclic(found: set[Arrow]) -> None:
    graph: dict[str, set[str]] = {}
    for start, end in found:
        if start != end:
            graph.setdefault(start, set()).add(end)
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_every_folder_has_a_level():
    folders = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert folders <= LEVEL.keys(), f"add to LEVELS: {folders - LEVEL.keys()}"


def test_no_circle_at_import_time():
    check_acyclic(arrows(PACKAGE)[0])


def test_no_circle_with_imports_in_functions():
    eager, lazy = arrows(PACKAGE)
    check_acyclic((eager | lazy) - UPWARD)


def test_no_arrow_runs_back_up():
    eager, lazy = arrows(PACKAGE)
    assert upward(eager) == set()
    assert upward(lazy) <= UPWARD


def test_every_exception_is_needed():
    assert arrows(PACKAGE)[1] >= UPWARD


def test_the_model_imports_nothing_of_ours():
    eager, _ = arrows(PACKAGE)
    assert {end for start, end in eager if folder(start) == "model" and folder(end) != "model"} == set()


@pytest.mark.parametrize(
    ("source", "sees"),
    [
        ("from ..zero_shot import prompts", "zero_shot.prompts"),
        ("from ..zero_shot.prompts import TEMPLATE", "zero_shot.prompts"),
        ("import hf_clip.zero_shot.prompts", "zero_shot.prompts"),
        ("from hf_clip.zero_shot.prompts import TEMPLATE", "zero_shot.prompts"),
        ("from .. import zero_shot", "zero_shot"),
        ("def late():\n    from ..zero_shot.prompts import TEMPLATE", "zero_shot.prompts"),
        ("if TYPE_CHECKING:\n    from ..zero_shot.prompts import TEMPLATE", "zero_shot.prompts"),
    ],
)
def test_every_form_of_import_is_seen(source, sees, tmp_path):
    for name, text in {"embedding/texts.py": source, "zero_shot/prompts.py": ""}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).parent.joinpath("__init__.py").touch()
        (tmp_path / name).write_text(text)
    eager, lazy = arrows(tmp_path)
    found = lazy if "    " in source else eager
    assert upward(found) == {("embedding.texts", sees)}
