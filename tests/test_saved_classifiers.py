"""Every kind of saved classifier decides alike, whatever loads it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from support.commands import run
from support.data_sets import class_folders, files
from support.exports import write_export
from support.plain import load
from support.requests import app_of, encoded
from transformers import pipeline

from hf_clip import FewShotClassifier, HFCLIPExportedModel, ZeroShotClassifier, embed_images
from hf_clip import ZeroShotImageClassificationPipeline as Pipeline
from hf_clip.app.answers import decide_upload
from hf_clip.cli import common
from hf_clip.exported import load_exported
from hf_clip.exported import model as exported_model
from hf_clip.zero_shot.decisions import Decision

MODES = ("one", "any", "each")
# what files may hold: texts, a background, a calibration, weights with offsets, pictures
KINDS = [*MODES, *(f"calibrated {mode}" for mode in MODES), "ridge", "cache", "calibrated cache"]
LABELS = ["blue square", "red circle"]


@pytest.fixture(scope="module")
def clip(repositories) -> SimpleNamespace:
    return load(repositories["tiny ViT"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("saved") / "photos")


@pytest.fixture(scope="module")
def saved(clip, photos, tmp_path_factory) -> dict[str, tuple[Path, Decision]]:
    """The file of each kind, and the decision about the last photo of the classifier that wrote it."""
    model, processor = clip.model, clip.processor
    pictures = [str(file) for file in files(photos)]
    shown = [Path(file).parent.name.replace("_", " ") for file in pictures]
    # labels that fit, so that thresholds can be had of weights that mean nothing
    known = {"class_embeds": embed_images(model, processor, [pictures[0], pictures[-1]])}
    made = {mode: ZeroShotClassifier(model, processor, LABELS, ["a {}."], mode=mode, **known) for mode in MODES}
    made |= {f"calibrated {mode}": made[mode].calibrate(pictures, shown, recall=0.5) for mode in MODES}
    for head in ("ridge", "cache"):
        made[head] = FewShotClassifier.fit(model, processor, photos, labels=LABELS, head=head)
    made["calibrated cache"] = made["cache"].calibrate(pictures, shown)
    folder = tmp_path_factory.mktemp("classifiers")
    found = {}
    for kind, classifier in made.items():
        file = folder / f"{kind.replace(' ', '_')}.safetensors"
        classifier.save(file)
        [(_, decision)] = classifier.decisions(pictures[-1], None)
        found[kind] = file, decision
    return found


@pytest.fixture(scope="module")
def exported(clip, tmp_path_factory):
    """An exported folder whose graphs are the model itself, on tensors and on arrays."""

    @torch.no_grad()
    def compute(inputs: dict[str, np.ndarray]) -> np.ndarray:
        ((name, array),) = inputs.items()
        encode = clip.model.encode_image if name == "pixel_values" else clip.model.encode_text
        return encode(torch.from_numpy(array)).numpy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(exported_model.OPEN, "onnx", lambda file, device: compute)
        patch.setitem(exported_model.CHECK_DEVICE, "onnx", lambda name, device: None)
        folder = write_export(tmp_path_factory.mktemp("exported") / "folder", clip.model, clip.processor)
        tensors = HFCLIPExportedModel(folder), clip.processor
        yield SimpleNamespace(tensors=tensors, arrays=load_exported(folder))


def decided(model, processor, file: Path, image: Path) -> tuple:
    [(_, decision)] = ZeroShotClassifier.load(file, model, processor).decisions(str(image), None)
    return decision.scores, decision.labels


def by_load(clip, file, image, _) -> tuple:
    return decided(clip.model, clip.processor, file, image)


def by_exported_tensors(clip, file, image, exported) -> tuple:
    return decided(*exported.tensors, file, image)


def by_exported_arrays(clip, file, image, exported) -> tuple:
    return decided(*exported.arrays, file, image)


def by_pipeline(clip, file, image, _) -> tuple:
    parts = {"tokenizer": clip.processor.tokenizer, "image_processor": clip.processor.image_processor}
    classify = pipeline("zero-shot-image-classification", clip.model, **parts, pipeline_class=Pipeline, classifier=file)
    return classify(Image.open(image)), None


def by_app(clip, file, image, _) -> tuple:
    scores, told = decide_upload(ZeroShotClassifier.load(file, clip.model, clip.processor), str(image), 5)
    taken = told.split(": ")[0]
    labels = [] if taken == "none of these" else taken.split(", ")
    return [{"label": label, "score": score} for label, score in scores.items()], labels


def by_server(clip, file, image, _) -> tuple:
    body = {"image": encoded(image.read_bytes())}
    with TestClient(app_of(clip, classifier=str(file))) as client:
        told = client.post("/classify", json=body | {"answer": "decision"}).json()
        assert client.post("/classify", json=body).json() == told["labels"]
    return told["labels"], told["decision"]


USERS = (by_load, by_exported_tensors, by_exported_arrays, by_pipeline, by_app, by_server)


@pytest.fixture
def upload(photos, monkeypatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(photos))
    return files(photos)[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("user", USERS)
def test_a_saved_classifier_decides_as_the_one_that_wrote_it(clip, saved, exported, upload, user, kind):
    file, expected = saved[kind]
    scores, labels = user(clip, file, upload, exported)
    wanted = {answer["label"]: answer["score"] for answer in expected.scores}
    # images of one color are nearly equal to these models, so fitted heads are steep
    assert {answer["label"]: answer["score"] for answer in scores} == pytest.approx(wanted, abs=2e-3)
    assert labels in (None, expected.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_decides_as_the_classifier(clip, saved, upload, kind, monkeypatch, capsys):
    monkeypatch.setattr(common, "load_embedder", lambda *_: (clip.model, clip.processor))
    file, expected = saved[kind]
    assert run("classify", upload, "--labels", file, "--model", "any", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["decision"], told["reason"]) == (expected.labels, expected.reason)
    scores = {answer["label"]: answer["score"] for answer in told["labels"]}
    assert scores == pytest.approx({answer["label"]: answer["score"] for answer in expected.scores}, abs=1e-5)
