"""README.md and docs/: their code runs, their commands work, their links lead somewhere."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import run
from support.data_sets import captions, class_folders, write_csv
from support.pages import PAGES, ROOT, blocks, with_paths

from hf_clip import HFCLIPImageProcessor
from hf_clip.openai.convert import Layout, convert
from hf_clip.utils.packages import SOURCE

MAX_README_LINES = 110
# their code needs the extra `integrations`
INTEGRATIONS = ("export",)


@pytest.fixture(scope="module")
def folders(archives: dict[str, Path], repositories: dict[str, Path], tmp_path_factory) -> dict[str, Path]:
    """What the names in the pages stand for."""
    stock = tmp_path_factory.mktemp("docs") / "stock"
    convert(str(archives["tiny ViT"]), stock, Layout.transformers, report=lambda _: None)
    return {
        "RN50": archives["tiny ResNet"],
        "ViT-B/32": archives["tiny ViT"],
        "clip-rn50": repositories["tiny ResNet"],
        "clip-vit-base-patch32": repositories["tiny ViT"],
        "openai/clip-vit-base-patch32": stock,
    }


@pytest.fixture
def desk(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the photos and models that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    # a page makes `import clip` hf_clip's; it must not have been the original's before, and is again afterwards
    for name in [name for name in sys.modules if name.split(".")[0] == "clip"]:
        monkeypatch.delitem(sys.modules, name)
    photos = [Path("photo.jpg"), Path("photos/one.jpg"), Path("photos/two.jpg")]
    Path("photos").mkdir()
    for angle, path in enumerate(photos):
        Image.radial_gradient("L").rotate(90 * angle).resize((97, 65)).convert("RGB").save(path)
    for name in ("animals", "more-animals", "objects"):
        write_csv(class_folders(Path(name)) / "pairs.csv", captions(Path(name)))
    for name in ("clip-rn50", "clip-vit-base-patch32"):
        shutil.copytree(folders[name], name)
    return tmp_path


def run_commands(text: str, folders: dict[str, Path]) -> None:
    """Run each `hf-clip` line; other programs are not this page's to test."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["hf-clip"]:
            continue
        names = {name: str(folders[name]) for name in ("RN50", "ViT-B/32")}
        words = [names.get(word, word) for word in words[1:]]
        if words[0] == "convert":
            words.append("--force")
        if "--original" in words:
            words.append("--trust-original")
        assert run(*words) == 0, line


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, id=page.stem, marks=pytest.mark.integration if page.stem in INTEGRATIONS else pytest.mark.slow
        )
        for page in PAGES
    ],
)
def test_blocks_run_from_top_to_bottom(page: Path, desk: Path, folders: dict[str, Path]):
    namespace = {}
    for language, text in blocks(page, "python", "bash"):
        if language == "bash":
            run_commands(text, folders)
        else:
            exec(with_paths(text, folders), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        other = page.parent / path if path else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_readme_is_short_and_names_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_README_LINES
    assert set(re.findall(r"\((docs/[\w.]+)\)", text)) == {f"docs/{page.name}" for page in PAGES[1:]}


@pytest.mark.parametrize(
    ("image", "low", "high"),
    [
        pytest.param(Image.fromarray(np.full((9, 9), 40_000, np.uint16)), 255, 255, id="16-bit is white"),
        pytest.param(Image.fromarray(np.full((9, 9), 0.9, np.float32)), 0, 0, id="a float of 0.9 is black"),
        pytest.param(Image.new("RGBA", (9, 9), (200, 200, 200, 0)), 0, 0, id="transparent is black"),
        pytest.param(Image.new("RGBA", (9, 9), (200, 200, 200, 128)), 199, 199, id="half transparent keeps its color"),
        pytest.param(Image.linear_gradient("L").convert("1"), 0, 255, id="black and white has no gray"),
    ],
)
def test_the_table_of_image_modes(image: Image.Image, low: int, high: int):
    processor = HFCLIPImageProcessor(size={"shortest_edge": 6}, crop_size={"height": 6, "width": 6})
    pixels = processor(images=image, return_tensors="np").pixel_values[0]
    values = np.rint(255 * (pixels.T * processor.image_std + processor.image_mean))
    assert (values.min(), values.max()) == (low, high)
    if image.mode == "1":
        assert set(np.unique(values)) == {0, 255}


def test_readmes_tree_counts_the_rooms_of_the_package():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = {
        name: int(count.replace(",", "")) for name, count in re.findall(r"^  (\S+) +([\d,]+)  ", text, re.MULTILINE)
    }
    package = ROOT / "hf_clip"
    rooms = [path for path in package.iterdir() if (path / "__init__.py").exists()]
    modules = [path for path in package.glob("*.py") if not path.name.startswith("__")]
    counted = {path.name: [path] for path in modules} | {f"{path.name}/": list(path.rglob("*.py")) for path in rooms}
    advice = "run: python docs/tree.py"
    assert set(said) == set(counted), advice
    for name, files in counted.items():
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        assert abs(said[name] - lines) <= 50 + lines / 5, (
            f"{name} has {lines} lines, README says {said[name]}: {advice}"
        )


def test_there_is_one_way_to_write_the_install():
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    files = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("model_cards/clip-*.md"),
        *ROOT.glob("hf_clip/**/*.py"),
    ]
    files += [file for file in (ROOT / "examples").rglob("*") if file.suffix in (".md", ".txt", ".ipynb", ".py")]
    written = []
    for file in files:
        text = file.read_text(encoding="utf-8").replace(r"\"", '"')
        for match in re.finditer(r"(?:pip install [^\n`]*)?\bhf_clip(?:\[([\w,]+)\]| @)[^\n`]*", text):
            written.append((file, match))
            assert f" @ {SOURCE}" in match[0], f"{file}: {match[0]}"
            assert set((match[1] or "plot").split(",")) <= extras, f"{file}: {match[0]}"
        assert not re.search(r"pip install (-q )?\"?(hf_clip\b(?! @|\[)|git\+)", text), file
    assert len(written) >= 20


def test_readme_names_every_extra_for_users():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = pyproject.split("[project.optional-dependencies]")[1].split("# for maintainers")[0]
    extras = set(re.findall(r"^(\w+) = \[", block, re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert extras <= set(re.findall(r"`(\w+)`", readme))


def test_readme_names_the_lowest_versions():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in ("torch", "transformers"):
        lowest = re.search(rf'"{package}>=([\d.]+)"', pyproject)[1]
        assert f"{package} {lowest}" in readme
    assert f"Python {re.search(r'requires-python = .>=([0-9.]+)', pyproject)[1]}" in readme


def test_actions_are_pinned_by_commit_and_see_no_stored_token():
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = workflow.read_text(encoding="utf-8")
        used = re.findall(r"uses: (.+)", text)
        assert used
        assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", action) for action in used), workflow
        assert "secrets." not in text


def test_the_sites_navigation_names_every_page():
    text = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    assert set(re.findall(r'"([\w.]+\.md)"', text)) == {"index.md", *(page.name for page in PAGES[1:])}


REMOTE_CODE = re.compile(r"\w\((?:[^()]|\([^()]*\))*?trust_remote_code=True(?:[^()]|\([^()]*\))*\)")
PINNED = re.compile(r"revision=(COMMIT|\"COMMIT\"|\"v([\d.]+|{{ version }})\")")


def test_every_snippet_that_trusts_remote_code_pins_a_revision():
    """Never a branch, which may hold other code tomorrow. What Inference Endpoints run serves its own folder."""
    files = [*ROOT.glob("*.md"), *(file for kind in ("md", "ipynb", "py") for file in ROOT.glob(f"[!.]*/**/*.{kind}"))]
    files = [file for file in files if file.relative_to(ROOT).parts[0] not in ("tests", "build")]
    found = {file: REMOTE_CODE.findall(file.read_text(encoding="utf-8")) for file in files if file.name != "handler.py"}
    names = {file.name for file, calls in found.items() if calls}
    assert {"clip-rn50.md", "template.md", "publish.md", "SECURITY.md"} <= names
    assert [call for calls in found.values() for call in calls if not PINNED.search(call)] == []
