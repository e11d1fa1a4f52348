"""The demo's models, its images, and the scripts that made them."""

import base64
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import clip
import numpy as np
import pytest
import torch
from PIL import Image
from support.exports import write_export
from support.fake_graphs import use_fake_graphs
from transformers import AutoModel, AutoProcessor, pipeline

from examples import demo
from examples.shapes import HELD_OUT, PAIRS, SEEN, draw_two
from examples.train_shapes import CHECKPOINTS, DRAWN, PROMPT, accuracy, configuration, draw_images, train
from hf_clip import load_clip
from hf_clip.exported import model as exported_model
from hf_clip.openai.convert import convert, make_processor

IMAGES = sorted(demo.IMAGES.glob("*.png"))
UNUSED_SEED = 9_000


@pytest.fixture(params=CHECKPOINTS, scope="module")
def shapes_family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(shapes_family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed checkpoint, converted."""
    directory = tmp_path_factory.mktemp("examples") / shapes_family
    convert(str(CHECKPOINTS[shapes_family]), directory, report=lambda _: None)
    return directory


def test_images_are_mostly_unseen_pairs_of_several_kinds():
    pairs = [tuple(image.stem.split("-")) for image in IMAGES]
    assert len(pairs) >= 10
    assert set(pairs) <= set(PAIRS)
    assert sum(pair in HELD_OUT for pair in pairs) >= len(pairs) / 2
    opened = [Image.open(image) for image in IMAGES]
    assert {"P", "RGBA", "RGB"} <= {image.mode for image in opened}
    assert len({image.size for image in opened}) > 3


def test_two_shapes_in_one_picture():
    rng = np.random.default_rng(0)
    for _ in range(5):
        image, masks = draw_two(("red", "circle"), ("blue", "square"), rng)
        assert masks.shape == (2, image.height, image.width)
        assert {image.width, image.height} == {80, 160}
        assert not masks.all(0).any()
        red, blue = (np.asarray(image)[mask].mean(0) for mask in masks)
        assert red.argmax() == 0
        assert blue.argmax() == 2


def test_held_out_pairs_are_made_of_known_words():
    assert not set(HELD_OUT) & set(SEEN)
    assert {color for color, _ in HELD_OUT} <= {color for color, _ in SEEN}
    assert {shape for _, shape in HELD_OUT} <= {shape for _, shape in SEEN}
    assert len({shape for _, shape in HELD_OUT}) == len({shape for _, shape in PAIRS}) == len(HELD_OUT)


def test_pipeline_labels_the_committed_images(folder: Path):
    classifier = pipeline("zero-shot-image-classification", model=str(folder))
    answers = classifier([str(image) for image in IMAGES], candidate_labels=list(demo.SHAPE_LABELS))
    assert [answer[0]["label"] for answer in answers] == [image.stem.replace("-", " ") for image in IMAGES]


@pytest.mark.slow
def test_zero_shot_accuracy_on_fresh_images(folder: Path):
    processor = AutoProcessor.from_pretrained(folder)
    images = draw_images(PAIRS, 25, UNUSED_SEED)
    scores = accuracy(AutoModel.from_pretrained(folder).eval(), images, processor)
    assert min(scores.values()) > 0.9, scores


@torch.no_grad()
def test_original_reads_the_checkpoint_and_gives_the_same_features(shapes_family: str, folder: Path):
    original, preprocess = clip.load(str(CHECKPOINTS[shapes_family]), device="cpu")
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    images = [Image.open(image) for image in IMAGES]
    texts = [PROMPT.format(label) for label in demo.SHAPE_LABELS]
    ours = processor(images=images, text=texts, padding="max_length", return_tensors="pt")
    pixels = torch.stack([preprocess(image) for image in images])
    input_ids = clip.tokenize(texts)
    assert torch.equal(ours["pixel_values"], pixels)
    assert torch.equal(ours["input_ids"], input_ids)
    assert torch.equal(model.encode_image(ours["pixel_values"]), original.encode_image(pixels))
    assert torch.equal(model.encode_text(ours["input_ids"]), original.encode_text(input_ids))


@pytest.mark.slow
@pytest.mark.training
def test_training_lowers_the_loss(shapes_family: str):
    processor = make_processor(configuration(shapes_family))
    pool = draw_images(DRAWN, 2, UNUSED_SEED)
    pixels = processor(images=pool[0], return_tensors="pt").pixel_values
    captions = processor(text=[" ".join(filter(None, pair)) for pair in DRAWN], return_tensors="pt").input_ids

    def loss(steps: int) -> float:
        model = train(shapes_family, steps, 0, pool, processor, CHECKPOINTS["resnet"])
        return model.train()(captions, pixels, return_loss=True).loss.item()

    assert loss(40) < loss(1) - 0.5


def test_demo_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture):
    demo.main(["--images", *map(str, IMAGES[:3]), "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(image.stem in printed for image in IMAGES[:3])
    assert "wrong" not in printed
    assert printed.count("right") in (2 * 3 + 1, 2 * 3 + 2)  # with the totals of one or both kinds
    assert Image.open(tmp_path / "demo.png").width > 500
    assert all((tmp_path / path.stem / "model.safetensors").is_file() for path in CHECKPOINTS.values())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--images", "absent.png"], "absent.png"),
        (["--model", "ViT-B/33"], "did you mean"),
        (["--images", __file__], "as an image"),
    ],
)
def test_demo_says_what_is_wrong(arguments: list[str], problem: str, tmp_path: Path):
    with pytest.raises(SystemExit, match=problem):
        demo.main([*arguments, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_serverless_function_labels_an_image(tmp_path, monkeypatch):
    model, processor = load_clip(next(iter(CHECKPOINTS.values())))
    monkeypatch.setenv("CLIP_FOLDER", str(write_export(tmp_path / "clip", model, processor)))
    for table in (exported_model.OPEN, exported_model.CHECK_DEVICE):
        monkeypatch.setitem(table, "onnx", None)
    use_fake_graphs()
    monkeypatch.delitem(sys.modules, "examples.serverless.handler", raising=False)
    handler = import_module("examples.serverless.handler").handler

    def answer(content: bytes, labels: str | None, **event) -> tuple[int, Any]:
        asked = {
            "queryStringParameters": labels and {"labels": labels},
        }
        found = handler({**asked, "body": base64.b64encode(content).decode(), **event}, None)
        return found["statusCode"], json.loads(found["body"])

    image = IMAGES[0].read_bytes()
    status, scores = answer(image, "red star,blue circle")
    assert status == 200
    assert {score["label"] for score in scores} == {"red star", "blue circle"}
    assert sum(score["score"] for score in scores) == pytest.approx(1)
    for content, labels, event, sentence in (
        (b"no image", "a,b", {}, "cannot read the image: it is no image"),
        (image, None, {}, "labels is empty"),
        (image, "a,b", {"body": "?"}, "Only base64 data is allowed"),
        (image, "a,b", {"body": None}, "cannot read the image"),
    ):
        status, answered = answer(content, labels, **event)
        assert status == 400
        assert answered["error"].startswith(sentence)
