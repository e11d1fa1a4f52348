"""The package as others install it: its wheel, its declared dependencies, its metadata."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
from PIL import Image
from support.originals import FAMILIES
from support.pages import blocks, with_paths

import hf_clip
from hf_clip.openai.convert import Layout, convert
from hf_clip.utils import packages

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib")  # of Python 3.11
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_USERS = ("plot", "parquet", "search", "serve", "ray", "remote", "train", "eval", "peft")
# rooms that only verbs of these extras enter, after `require`: they import the packages of the extra at once
ROOMS = {"hf_clip/serving/": ("serve", "ray")}
LABELS = "a cat,a dog"
RUN_VERBS = """
import json, sys
from hf_clip_command import main

for arguments in json.loads(sys.argv[1]):
    print("--- ran", arguments[0])
    sys.argv = ["hf-clip", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, arguments
"""
FSSPEC = "fsspec>=2026.6"  # by transformers otherwise


def distribution(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("-", "_")


def imported(late: bool) -> dict[str, set[str]]:
    """List the files of hf_clip by the packages that they import, `late` in functions or at once."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "hf_clip").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inside = {id(node) for part in ast.walk(tree) if isinstance(part, ast.FunctionDef) for node in ast.walk(part)}
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                if (id(node) in inside) == late:
                    found.setdefault(name.split(".")[0], set()).add(str(file.relative_to(ROOT)))
    return {name: files for name, files in found.items() if name not in {*sys.stdlib_module_names, "hf_clip"}}


def undeclared(names: set[str], requirements: list[str]) -> set[str]:
    declared, installed = set(map(distribution, requirements)), packages_distributions()
    return {name for name in names if not {distribution(d) for d in installed.get(name, [name])} & declared}


def test_every_import_is_a_declared_dependency():
    at_once = imported(late=False)
    elsewhere = {
        name
        for name, files in at_once.items()
        if not all(any(file.startswith(room) for room in ROOMS) for file in files)
    }
    assert undeclared(elsewhere, PROJECT["dependencies"]) == set()
    for room, extras in ROOMS.items():
        inside = {name for name, files in at_once.items() if any(file.startswith(room) for file in files)}
        of_extras = [requirement for extra in extras for requirement in EXTRAS[extra]]
        assert undeclared(inside, PROJECT["dependencies"] + of_extras) == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_an_extra_is_entered_late(room):
    """No module imports it at once."""
    name = room.rstrip("/").rpartition("/")[2]
    outside = [file for file in (ROOT / "hf_clip").rglob("*.py") if name not in file.parts]
    found = [line for file in outside for line in file.read_text("utf-8").splitlines() if f".{name}." in line]
    assert found
    assert all(line.startswith(" ") for line in found), found


def test_every_import_in_a_function_is_a_dependency_or_an_extra():
    optional = [requirement for extra in EXTRAS.values() for requirement in extra]
    assert undeclared(set(imported(late=True)), PROJECT["dependencies"] + optional) == set()


def test_a_missing_declaration_is_found():
    assert undeclared({"typer", "sklearn"}, ["typer>=0.12"]) == {"sklearn"}


def test_every_extra_that_an_error_names_exists():
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "hf_clip").rglob("*.py"))
    named = {extra for _, extra in re.findall(r'require\(\s*"([\w.]+)",\s*"(\w+)"', source)}
    assert {"plot", "parquet"} <= named <= EXTRAS.keys()
    assert set(FOR_USERS) <= EXTRAS.keys()
    assert packages.MissingPackageError.__mro__[1] is ImportError


def test_versions_agree():
    version = hf_clip.__version__
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


# --- the wheel --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Install the wheel, outside the clone, over the dependencies of this environment; give the bin folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "hf_clip_command.py"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "hf_clip", source / "hf_clip", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([*pip, *build], check=True, env=outside())
    [wheel] = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    places = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    # the .pth files of this environment, and so its editable installs, are not read from there
    Path(places["purelib"], "dependencies.pth").write_text("\n".join(sorted(dependency_folders())) + "\n")
    python = Path(places["scripts"]) / "python"
    subprocess.run([*pip, "--python", python, "install", "--quiet", "--no-deps", wheel], check=True, env=outside())
    return python.parent


def dependency_folders() -> set[str]:
    return {str(Path(__import__(name).__file__).parents[1]) for name in ("torch", "transformers", "typer", "PIL")}


def outside() -> dict[str, str]:
    """Return the environment variables without a way to the clone."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


@pytest.mark.slow
def test_the_wheel_holds_what_it_should(installed, tmp_path):
    code = """
import importlib.resources, importlib.util, hf_clip
print(hf_clip.__file__)
assert not importlib.util.find_spec("conversion") and not importlib.util.find_spec("tests")
files = importlib.resources.files("hf_clip")
for path in (
    "py.typed", "export/preprocess.mjs", "openai/bpe_simple_vocab_16e6.txt.gz", "parity/data/golden.json",
    "parity/data/images/cmyk.tif",
):
    assert (files / path).is_file(), path
for path in ("evaluation/data/prompts.json", "evaluation/data/published.json"):
    assert (files / path).is_file(), path
"""
    done = subprocess.run(
        [installed / "python", "-c", code], cwd=tmp_path, env=outside(), capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_verb_runs_from_the_wheel(installed, archives, family, tmp_path):
    """In another folder than the clone; the words of the parity checks come from the wheel as well."""
    (tmp_path / "photos").mkdir()
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photos" / "photo.png")
    shutil.copytree(tmp_path / "photos", tmp_path / "classes" / "a_gradient")
    for label, gradient in (("a ball", Image.radial_gradient), ("a box", Image.linear_gradient)):
        (tmp_path / "pairs" / label).mkdir(parents=True)
        gradient("L").convert("RGB").save(tmp_path / "pairs" / label / "photo.png")
    (tmp_path / "pairs.csv").write_text("image,text\nphotos/photo.png,a ball\n")
    archive = archives[family]

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=outside(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    verbs = {
        "convert": [archive, "--output", "clip"],
        "to-openai": ["clip", "--output", "back.pt"],
        "verify": ["clip", "--original", archive, "--trust-original"],
        "classify": ["photos", "--labels", LABELS, "--model", "clip", "--plot", "scores.png"],
        "embed": ["photos", "--output", "features.safetensors", "--model", "clip"],
        "filter": ["pairs.csv", "--model", "clip", "--output", "filtered", "--min-score", "-1"],
        "calibrate": ["pairs", "--model", "clip", "--output", "calibrated.safetensors"],
        "few-shot": ["pairs", "--model", "clip", "--output", "few.safetensors"],
        "suspects": ["pairs", "--model", "clip", "--output", "suspects.csv"],
        "dedup": ["photos", "--model", "clip", "--output", "unique"],
        "finetune": ["pairs", "--model", "clip", "--output", "tuned", "--epochs", "1", "--batch-size", "2"],
        "merge": ["clip", "tuned", "--output", "merged"],
        "evaluate": ["zero-shot", "classes", "--model", "clip", "--prompts", "imagenet1k"],
        "index": ["features.safetensors", "--output", "photos.index"],
        "search": ["photos.index", "a cat"],
        "duplicates": ["photos.index"],
        "where": ["photos/photo.png", "a ball", "--model", "clip", "--plot", "where.png"],
    }
    # one process for all: each start of torch would take longer than the verbs do
    orders = json.dumps([[verb, *map(str, arguments)] for verb, arguments in verbs.items()])
    out = run(installed / "python", "-c", RUN_VERBS, orders)
    printed = dict(zip(verbs, re.split(r"^--- ran [\w-]+\n", out, flags=re.MULTILINE)[1:], strict=True))
    assert "FAILED" not in printed["verify"]
    assert "photo.png: a " in printed["classify"]
    assert "1 new embeddings of 64 dimensions" in printed["embed"]
    written = {path.name for path in tmp_path.iterdir()}
    assert {"clip", "back.pt", "scores.png", "features.safetensors"} <= written
    verbs_of_the_wheel = set(re.findall(r"^│ ([a-z][a-z-]+) ", run(installed / "hf-clip", "--help"), re.MULTILINE))
    # two need packages of their own, which tests/integrations has; a server runs in tests/serving
    assert verbs_of_the_wheel - {"app", "export", "serve"} == verbs.keys(), "run the new verb here too"


@pytest.mark.slow
def test_the_code_of_readme_runs_from_the_wheel(installed, archives, tmp_path):
    stock = tmp_path / "stock"
    convert(str(archives["tiny ViT"]), stock, Layout.transformers, report=lambda _: None)
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photo.jpg")
    names = {"RN50": archives["tiny ResNet"], "ViT-B/32": archives["tiny ViT"], "openai/clip-vit-base-patch32": stock}
    code = "\n".join(with_paths(text, names) for _, text in blocks(ROOT / "README.md", "python"))
    done = subprocess.run(
        [installed / "python", "-c", code], cwd=tmp_path, env=outside(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'label': 'a cat'" in done.stdout


# --- the distribution without torch -----------------------------------------------------------------------------------

EXPORTED = tomllib.loads((ROOT / "distributions" / "exported" / "pyproject.toml").read_text())["project"]


def test_the_small_distribution_repeats_requirements_word_for_word():
    """Its extras are those of errors, and what it needs beyond hf_clip's own dependencies is in an extra of hf_clip."""
    optional = {requirement for extra in EXTRAS.values() for requirement in extra}
    assert set(EXPORTED["dependencies"]) <= {*PROJECT["dependencies"], *optional, FSSPEC}
    assert EXPORTED["optional-dependencies"].keys() == set(packages.SMALL_EXTRAS)
    for extra, requirements in EXPORTED["optional-dependencies"].items():
        assert set(requirements) <= set(EXTRAS[extra])
    assert EXPORTED["name"] == packages.SMALL
    assert EXPORTED["scripts"] == PROJECT["scripts"]
    assert not {*map(distribution, EXPORTED["dependencies"])} & {"torch", "torchvision", "transformers"}


def test_an_extra_is_that_of_the_installed_distribution(monkeypatch):
    assert packages.install_command("search").startswith('pip install "hf_clip[search] @ git+')
    monkeypatch.setattr(packages, "has_model_packages", lambda: False)
    small = 'pip install "hf_clip_exported[search] @ git+https://github.com/hf-clip/hf_clip#subdirectory='
    assert packages.install_command("search").startswith(small)
    assert packages.install_command("train").startswith('pip install "hf_clip[train] @ git+')
    assert (ROOT / packages.SMALL_FOLDER / "pyproject.toml").is_file()


@pytest.mark.slow
def test_the_small_wheel_holds_the_same_code(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", tmp_path, ROOT / packages.SMALL_FOLDER], check=True, env=outside())
    with ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = wheel.read(f"{packages.SMALL}-{hf_clip.__version__}.dist-info/METADATA").decode()
    files = {file.relative_to(ROOT) for file in (ROOT / "hf_clip").rglob("*") if file.is_file()}
    code = {file.as_posix() for file in files if "__pycache__" not in file.parts}
    assert held == code | {"hf_clip_command.py"}
    assert "\nRequires-Dist: onnxruntime" in metadata
    assert "Requires-Dist: torch" not in metadata


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["hf_clip.loading", "conversion", "transformers_modules.clip.modeling_hf_clip"])
def test_a_deprecation_met_by_our_own_code_is_an_error(category, module):
    with pytest.raises(category, match="old"):
        exec("import warnings; warnings.warn('old', category)", {"__name__": module, "category": category})
