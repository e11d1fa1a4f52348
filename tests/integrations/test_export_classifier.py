"""A saved classifier as one more graph: its scores are those of the classifier."""

import json

import numpy as np
import onnxruntime
import pytest
from support.data_sets import class_folders, files
from support.photos import load

from hf_clip import FewShotClassifier, ZeroShotClassifier, export_clip
from hf_clip.embedding.identity import OtherModelError

pytestmark = pytest.mark.integration


def run(path, **inputs):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


@pytest.mark.parametrize("head", ["ridge", "cache", "each"])
def test_scores_are_those_of_the_classifier(repositories, family, head, tmp_path):
    model, processor = load(repositories[family])
    photos = class_folders(tmp_path / "photos", each=4)
    if head == "each":
        classifier = ZeroShotClassifier(model, processor, ["red", "blue", "green"], mode="each")
    else:
        classifier = FewShotClassifier.fit(model, processor, photos, head=head)
    classifier.save(tmp_path / "saved.safetensors")
    result = export_clip(
        repositories[family],
        tmp_path / "out",
        parts=["vision"],
        classifier=tmp_path / "saved.safetensors",
        report=lambda _: None,
    )
    # images of one color are nearly equal to these models, so a cache is steep
    assert result["classifier"]["absolute_error_max"] < (1e-3 if head == "cache" else 1e-5)
    pixels = processor(images=[str(file) for file in files(photos)], return_tensors="np")["pixel_values"]
    embeds = run(tmp_path / "out/onnx/vision_model.onnx", pixel_values=pixels)
    found = run(tmp_path / "out/classifier.onnx", image_embeds=embeds)
    np.testing.assert_allclose(found, classifier.scores(list(map(str, files(photos)))), atol=1e-3)
    settings = json.loads((tmp_path / "out/classifier.json").read_text())
    assert settings["columns"] == classifier.labels
    assert len(settings["least_scores"]) == len(classifier.labels)


def test_a_classifier_of_another_model_or_runtime_is_refused(repositories, tmp_path):
    ZeroShotClassifier(*load(repositories["tiny ViT"]), ["a", "b"]).save(tmp_path / "saved.safetensors")
    options = {"classifier": tmp_path / "saved.safetensors", "report": lambda _: None}
    with pytest.raises(OtherModelError):
        export_clip(repositories["tiny ResNet"], tmp_path / "out", **options)
    with pytest.raises(ValueError, match="a classifier is written for runtime onnx, not openvino"):
        export_clip(repositories["tiny ViT"], tmp_path / "out", runtime="openvino", **options)
    assert not (tmp_path / "out").exists()
