"""The app in headless Chromium: what a person at the page clicks, sees and is told.

Its screenshots, made smaller, are those of docs/see.md.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.browser import open_page
from support.commands import run

from examples.shapes import draw_two
from examples.train_shapes import CHECKPOINTS
from hf_clip import HFCLIPModel, HFCLIPProcessor, ZeroShotClassifier
from hf_clip.app.page import build_page, launch_page
from hf_clip.openai.convert import convert
from hf_clip.search.index import ImageIndex

pytestmark = pytest.mark.integration
IMAGES = Path(__file__).parents[2] / "examples" / "images"
PHOTO = IMAGES / "red-circle.png"
LABELS = ["red circle", "blue square", "green star"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[tuple[HFCLIPModel, HFCLIPProcessor]]:
    """The models that know shapes, both families."""
    folders = [tmp_path_factory.mktemp("shapes") / f"shapes-{family}" for family in CHECKPOINTS]
    for family, folder in zip(CHECKPOINTS, folders, strict=True):
        convert(str(CHECKPOINTS[family]), folder, report=lambda _: None)
    return [(HFCLIPModel.from_pretrained(each).eval(), HFCLIPProcessor.from_pretrained(each)) for each in folders]


@pytest.fixture(scope="module")
def address(clips, tmp_path_factory) -> Iterator[str]:
    folder, (model, processor) = tmp_path_factory.mktemp("index"), clips[0]
    embeddings = folder / "out.safetensors"
    assert run("embed", IMAGES, "--output", embeddings, "--model", model.name_or_path) == 0
    index = ImageIndex.build(embeddings, folder / "index", model, processor, folder=IMAGES)
    page = build_page(*clips, title="shapes", index=index)
    yield launch_page(page, wait=False)
    page.close()


@pytest.fixture(scope="module")
def page(address) -> Iterator[Any]:
    with open_page(viewport={"width": 1000, "height": 900}) as page:
        page.goto(address)
        yield page


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("screenshots")


def panel(page: Any, tab: str) -> Any:
    """Open a tab, and return what it holds."""
    page.get_by_role("tab", name=tab).click()
    return page.locator("[role=tabpanel]:visible")


def upload(page: Any, file: Path) -> None:
    """Put an image into the page's one image input, in place of the one there."""
    remove = page.get_by_label("Remove Image")
    if remove.count():
        remove.click()
        remove.wait_for(state="hidden")
    page.locator("input[type=file]").set_input_files(file)
    # the upload has arrived; a broken image has no size, so that it counts as hidden
    page.locator(photo(file)).wait_for(state="attached")


def photo(file: Path) -> str:
    """Return the selector of an uploaded image."""
    return f"img[src*='/file='][src$='/{file.name}']"


def ask(page: Any, tab: str, **lines: list[str]) -> Any:
    """Fill a tab in and press its button."""
    opened = panel(page, tab)
    for label, texts in lines.items():
        opened.get_by_label(label).first.fill("\n".join(texts))
    opened.get_by_role("button", name=tab, exact=True).click()
    return opened


def assert_scores(opened: Any, clip: tuple[Any, Any], file: Path) -> None:
    [answers] = ZeroShotClassifier(*clip, LABELS)(str(file), top_k=3)
    for answer in answers:
        opened.locator("dl", has_text=answer["label"]).get_by_text(f"{answer['score']:.0%}", exact=True).wait_for()


def test_classify_shows_the_library_s_scores(page, clips, screenshots):
    upload(page, PHOTO)
    opened = ask(page, "Classify", labels=LABELS)
    assert_scores(opened, clips[0], PHOTO)
    image = page.locator(photo(PHOTO)).bounding_box()
    assert image["x"] + image["width"] <= opened.bounding_box()["x"], "the image lies beside the tabs"
    page.screenshot(path=screenshots / "classify.png", full_page=True)


def test_a_narrow_page_reads_from_the_image_down_to_the_scores(page, clips):
    upload(page, PHOTO)
    assert_scores(ask(page, "Classify", labels=LABELS), clips[0], PHOTO)
    wide = page.viewport_size
    page.set_viewport_size({"width": 390, "height": 900})
    try:
        places = [photo(PHOTO), "textarea:visible", "button.primary:visible", "dl:visible"]
        tops = [page.locator(each).first.bounding_box()["y"] for each in places]
        assert tops == sorted(tops)
    finally:
        page.set_viewport_size(wide)


def test_the_image_stays_from_tab_to_tab(page, clips):
    page.reload()
    upload(page, PHOTO)
    for tab in ("Where", "Search", "Compare", "Classify"):
        assert panel(page, tab).locator("input[type=file]").count() == 0
        assert page.locator(photo(PHOTO)).is_visible()
    assert_scores(ask(page, "Classify", labels=LABELS), clips[0], PHOTO)


def test_where_shows_a_sheet_of_maps(page, screenshots):
    two, _ = draw_two(("red", "circle"), ("blue", "square"), np.random.default_rng(5), side=160)
    two.save(screenshots / "two.png")
    opened = panel(page, "Where")
    opened.get_by_label("windows").check()
    opened.get_by_label("to its edges").check()
    upload(page, screenshots / "two.png")
    ask(page, "Where", texts=["a red circle", "a blue square"])
    sheet = opened.locator("img[src^='data:image']").last
    sheet.wait_for()
    assert sheet.evaluate("image => image.naturalWidth") > 800
    page.wait_for_timeout(500)  # it fades in
    page.screenshot(path=screenshots / "where.png", full_page=True)


def test_search_shows_the_best_image_first(page):
    upload(page, PHOTO)
    opened = ask(page, "Search", texts=["a red circle"])
    captions = opened.locator(".caption-label")
    captions.first.wait_for()
    assert "red-circle.png" in captions.first.inner_text()
    loaded = "async image => { await image.decode(); return image.naturalWidth; }"  # fails for a broken image
    assert opened.locator("img[src*='/file=']").last.evaluate(loaded) > 0


def test_compare_shows_both_models(page):
    upload(page, PHOTO)
    opened = ask(page, "Compare", labels=LABELS)
    for name in ("shapes-resnet", "shapes-vit"):
        opened.get_by_text(name).wait_for()
    opened.get_by_text("%").nth(5).wait_for()


@pytest.mark.parametrize(
    ("name", "labels", "problem"),
    [
        ("large.png", ["a cat"], "the image has 100,000,000 pixels"),
        ("notes.png", ["a cat"], "the file cannot be read as an image"),
        ("fine.png", [""], "there are no labels: write one per line"),
    ],
)
def test_problems_come_up_as_a_sentence(page, tmp_path, name, labels, problem):
    page.reload()
    if name == "large.png":
        Image.new("1", (10_000, 10_000)).save(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(b"no image" if name == "notes.png" else PHOTO.read_bytes())
    upload(page, tmp_path / name)
    ask(page, "Classify", labels=labels)
    page.get_by_text(problem).wait_for()
    assert str(tmp_path) not in page.inner_text("body")


def test_a_text_file_is_not_taken(page, tmp_path):
    page.reload()
    (tmp_path / "notes.txt").write_text("no image")
    page.locator("input[type=file]").set_input_files(tmp_path / "notes.txt")
    page.get_by_text("Invalid file type").wait_for()
