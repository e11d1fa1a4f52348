"""transformers.js under node, and examples/browser in headless Chromium, beside the library's classifier."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.browser import node, npm_packages, open_page
from support.image_corpus import EXIF_ORIENTATION
from support.served import serving

from examples.train_shapes import CHECKPOINTS
from hf_clip import ZeroShotClassifier, embed_texts, export_clip, load_clip
from hf_clip.openai.convert import convert

pytestmark = pytest.mark.integration
EXAMPLES = Path(__file__).parents[2] / "examples"
TRANSFORMERS_JS = "@huggingface/transformers@4.3.1"
IMAGES = sorted((EXAMPLES / "images").glob("*.png"))
LABELS = [path.stem.replace("-", " ") for path in IMAGES]

PROGRAM = """
import fs from "node:fs";
import { AutoTokenizer, CLIPTextModelWithProjection, env, pipeline } from
  "PACKAGES/@huggingface/transformers/dist/transformers.node.mjs";
const { folder, images, labels } = JSON.parse(fs.readFileSync(0));
env.allowRemoteModels = false;
env.localModelPath = folder;
const options = { dtype: "fp32" };
const classifier = await pipeline("zero-shot-image-classification", "model", options);
const answers = [];
for (const image of images) {
  const [best] = await classifier(image, labels, { hypothesis_template: "{}" });
  answers.push(best.label);
}
const tokenizer = await AutoTokenizer.from_pretrained("model");
const tower = await CLIPTextModelWithProjection.from_pretrained("model", options);
const { text_embeds } = await tower(tokenizer(labels, { padding: true, truncation: true }));
console.log(JSON.stringify({ answers, embeds: text_embeds.tolist() }));
"""


@pytest.fixture(scope="module", params=CHECKPOINTS)
def desk(request, tmp_path_factory) -> Path:
    """Lay one of the shapes models into "clip", and its export into "model"."""
    folder = tmp_path_factory.mktemp(request.param)
    convert(str(CHECKPOINTS[request.param]), folder / "clip", report=lambda _: None)
    export_clip(folder / "clip", folder / "model", parts=("vision", "text", "joint"))
    return folder


@pytest.fixture
def address(desk) -> Iterator[str]:
    """Serve the page, its packages and the exported model."""
    for name in ("index.html", "classify.mjs"):
        shutil.copy(EXAMPLES / "browser" / name, desk)
    packages = npm_packages("transformers-js", TRANSFORMERS_JS)
    (desk / "node_modules").symlink_to(packages / "node_modules")
    with serving(desk) as address:
        yield address


def phone_photos(folder: Path) -> dict[str, Path]:
    """Save a drawing stored on its side, with the orientation that turns it, as phones do."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    photo = Image.open(EXAMPLES / "images" / "green-star.png").convert("RGB").transpose(Image.Transpose.ROTATE_90)
    options = {"jpg": {"quality": 95, "subsampling": 0}}
    for suffix, chosen in options.items():
        photo.save(folder / f"phone.{suffix}", exif=exif, **chosen)
    return {suffix: folder / f"phone.{suffix}" for suffix in options}


def test_transformers_js_classifies_as_the_library_does(desk):
    packages = npm_packages("transformers-js", TRANSFORMERS_JS)
    script = PROGRAM.replace("PACKAGES", (packages / "node_modules").as_uri())
    clip = load_clip(desk / "clip")
    given = json.dumps({"folder": f"{desk}/", "images": list(map(str, IMAGES)), "labels": LABELS})
    found = json.loads(node("--input-type=module", "--eval", script, input=given).stdout.splitlines()[-1])
    expected = ZeroShotClassifier(*clip, LABELS, templates="{}")(IMAGES, top_k=1)
    assert found["answers"] == [ranking[0]["label"] for ranking in expected]
    embeds = torch.nn.functional.normalize(torch.tensor(found["embeds"]), dim=-1)
    cosines = (embeds * embed_texts(*clip, LABELS)).sum(-1)
    assert cosines.min() >= 1 - 1e-6


def test_the_page_gives_the_classifiers_scores(desk, address):
    classifier = ZeroShotClassifier(*load_clip(desk / "clip"), LABELS, templates="{}")
    (desk / "text.png").write_text("no image")
    with open_page() as page:
        page.goto(address)
        page.wait_for_function("!document.querySelector('#status').textContent.startsWith('loading')")
        assert page.inner_text("#status") == "ready"
        page.fill("#labels", "\n".join(LABELS))
        for path in IMAGES:
            page.set_input_files("#image", path)
            page.click("#classify")
            page.wait_for_function("document.querySelector('#status').textContent != 'classifying'")
            assert page.inner_text("#status") == "done"
            names = page.locator("#scores li span:first-child").all_inner_texts()
            scores = page.eval_on_selector_all("meter", "meters => meters.map((meter) => meter.value)")
            [ranking] = classifier([Image.open(path).convert("RGB")], top_k=None)  # a browser knows no palettes
            assert names[0] == ranking[0]["label"]
            expected = {each["label"]: each["score"] for each in ranking}
            assert dict(zip(names, scores, strict=True)) == pytest.approx(expected, abs=1e-4)
        for name, photo in phone_photos(desk).items():
            for exif, said in (("apply", "done"), ("ignore", "done: the image carries a rotation, which is ignored")):
                page.set_checked("#exif", exif == "apply")
                page.set_input_files("#image", photo)
                page.click("#classify")
                page.wait_for_function("document.querySelector('#status').textContent != 'classifying'")
                assert page.inner_text("#status") == said
                names = page.locator("#scores li span:first-child").all_inner_texts()
                scores = page.eval_on_selector_all("meter", "meters => meters.map((meter) => meter.value)")
                [ranking] = classifier([photo], top_k=None, exif=exif)
                expected = {each["label"]: each["score"] for each in ranking}
                assert dict(zip(names, scores, strict=True)) == pytest.approx(expected, abs=1e-4), (name, exif)
        page.set_input_files("#image", desk / "text.png")
        page.click("#classify")
        page.wait_for_function("document.querySelector('#status').textContent != 'classifying'")
        assert page.inner_text("#status").startswith("text.png is not an image that this browser reads")
