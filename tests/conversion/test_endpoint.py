"""handler.py, as Inference Endpoints call it: beside the weights in a folder that holds nothing of ours but that."""

import base64
import importlib.util
import shutil
import subprocess
import sys
from io import BytesIO
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from support.image_corpus import random_image
from support.threads import as_many_threads

from conversion.publish import ENDPOINT
from hf_clip import HFCLIPModel, HFCLIPProcessor

LABELS = ["a cat", "two dogs"]
REQUEST = {"parameters": {"candidate_labels": LABELS, "hypothesis_template": "a photo of {}"}}


@pytest.fixture(scope="module")
def handler_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("handler", ENDPOINT["handler.py"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def handler(handler_module, repositories):
    return handler_module.EndpointHandler(str(repositories["tiny ViT"]))


@pytest.fixture
def picture():
    return random_image("RGB", 70, 50, np.random.default_rng(0))


def png(image) -> bytes:
    image.save(buffer := BytesIO(), "PNG")
    return buffer.getvalue()


def large_png() -> bytes:
    return png(Image.new("1", (8000, 8000)))


def many_scans() -> bytes:
    """Repeat the last scan of a progressive JPEG."""
    Image.effect_noise((64, 64), 50).save(buffer := BytesIO(), "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 300 + content[-2:]


def test_answers_are_the_pipelines_and_the_models(handler_module, any_clip, picture):
    from transformers import pipeline

    handler = handler_module.EndpointHandler(str(any_clip.folder))
    parts = {"tokenizer": any_clip.processor.tokenizer, "image_processor": any_clip.processor.image_processor}
    expected = pipeline(handler_module.TASK, model=any_clip.model, **parts)(
        picture, candidate_labels=LABELS, hypothesis_template="a photo of {}"
    )
    encoded = base64.b64encode(png(picture)).decode()
    for image in (picture, png(picture), encoded, f"data:image/png;base64,{encoded}"):
        assert handler({"inputs": image, **REQUEST}) == expected
        assert handler({"inputs": {"image": image}, **REQUEST}) == expected
    pixels = any_clip.processor(images=picture, return_tensors="pt").pixel_values
    features = any_clip.model.get_image_features(pixels).pooler_output[0].tolist()
    assert handler({"inputs": {"image": encoded}}) == {"embedding": features}
    assert handler({"inputs": {"image": [encoded]}}) == {"embeddings": [features]}
    ids = any_clip.processor(text=["a cat"], return_tensors="pt").input_ids
    expected = any_clip.model.get_text_features(ids).pooler_output[0].tolist()
    assert handler({"inputs": {"text": "a cat"}}) == {"embedding": expected}
    assert len(handler({"inputs": {"text": ["cat " * 100, "a"]}})["embeddings"]) == 2


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        ({}, 'no "inputs"'),
        ([1], 'no "inputs"'),
        ({"inputs": {"image": "x", "text": "y"}}, "send"),
        ({"inputs": {"audio": "x"}}, "audio"),
        ({"inputs": "no image", **REQUEST}, "cannot be read"),
        ({"inputs": {"image": 3}}, "cannot be read"),
        ({"inputs": {"image": []}}, "empty list"),
        ({"inputs": b"GIF89a"}, "cannot be read"),
        ({"inputs": {"text": []}}, "list of one or more"),
        ({"inputs": {"text": ["a"] * 257}}, "257 items, at most 256"),
        ({"inputs": {"text": ["a" * 100_001]}}, "100,001 characters, at most 100,000"),
        ({"inputs": "x", "parameters": {"candidate_labels": ["a"] * 1001}}, "1,001 items, at most 1,000"),
        ({"inputs": "x", "parameters": {"hypothesis_template": "{}"}}, "must be a list of one or more texts"),
        (
            {"inputs": "x", "parameters": {"candidate_labels": ["a"], "hypothesis_template": "{:>9} {}"}},
            "no other braces",
        ),
        ({"inputs": b"0" * 20_000_001}, "20,000,001 bytes, at most 20,000,000"),
        ({"inputs": large_png()}, "64,000,000 pixels, at most 40,000,000"),
        ({"inputs": many_scans()}, "over 200 scans"),
        ({"inputs": {"text": 3}}, "list of one or more"),
        ({"inputs": {"text": "a"}, **REQUEST}, "need one image"),
        ({"inputs": "", "parameters": []}, "cannot be read"),
        ({"inputs": "", "parameters": ["a"]}, "no object"),
        ({"inputs": "", "parameters": {"candidate_labels": []}}, "candidate_labels"),
        ({"inputs": "", "parameters": {"candidate_labels": "a"}}, "candidate_labels"),
        ({"inputs": "", "parameters": {"candidate_labels": ["a"], "top": 1}}, "top"),
        ({"inputs": "", "parameters": {"candidate_labels": ["a"], "hypothesis_template": "a"}}, "where the label goes"),
    ],
)
def test_a_bad_request_is_one_sentence(handler, request_body, message):
    with pytest.raises(ValueError, match=message):
        handler(request_body)


@pytest.mark.slow
def test_a_bare_folder_is_enough(repositories, family, picture, tmp_path):
    """Without hf_clip: the folder's own code runs."""
    folder = shutil.copytree(repositories[family], tmp_path / "repository")
    for name, path in ENDPOINT.items():
        shutil.copyfile(path, folder / name)
    picture.save(folder / "picture.png")
    program = (
        "import sys; sys.modules['hf_clip'] = None; from handler import EndpointHandler;"
        "print(EndpointHandler('.')({'inputs': {'image': open('picture.png', 'rb').read()}})['embedding'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=as_many_threads(), capture_output=True, text=True, check=True
    )
    pixels = HFCLIPProcessor.from_pretrained(repositories[family])(images=picture, return_tensors="pt").pixel_values
    expected = HFCLIPModel.from_pretrained(repositories[family]).eval().encode_image(pixels)[0].tolist()
    assert done.stdout.strip().splitlines()[-1] == str(expected)
