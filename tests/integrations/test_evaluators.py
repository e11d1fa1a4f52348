"""The evaluators of sentence-transformers and mteb, as docs/evaluate.md has them, find our numbers."""

import json
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageColumn
from support.image_corpus import random_image
from support.pages import ROOT, blocks

from hf_clip import HFCLIPModel, HFCLIPProcessor
from hf_clip.evaluation import retrieval, zero_shot

pytestmark = pytest.mark.integration
CLASSES = ("airplane", "automobile", "bird")


def test_the_code_of_the_page_finds_our_numbers(repositories, family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(repositories[family], "clip-rn50")
    rng = np.random.default_rng(0)
    images = [random_image("RGB", 70, 50, rng) for _ in range(24)]
    rows = [{"image": f"{number}.png", "text": f"picture {number}"} for number in range(12)]
    for row, image in zip(rows, images, strict=False):
        image.save(row["image"])
    (tmp_path / "captions.json").write_text(json.dumps({row["image"]: row["text"] for row in rows}))
    labels = [number % len(CLASSES) for number in range(len(images))]
    data = Dataset.from_dict(
        {"img": images, "label": labels}, Features({"img": ImageColumn(), "label": ClassLabel(names=CLASSES)})
    )
    monkeypatch.setattr("mteb.abstasks.abstask.load_dataset", lambda *_, **__: DatasetDict(test=data))

    found: list[float] = []
    namespace = {"print": found.append}
    for _, code in blocks(ROOT / "docs" / "evaluate.md", "py"):
        exec(code, namespace)
    model, processor = HFCLIPModel.from_pretrained("clip-rn50").eval(), HFCLIPProcessor.from_pretrained("clip-rn50")
    recall = retrieval(model, processor, rows).metrics
    for k in (1, 5, 10):
        theirs = namespace["metrics"][f"cosine_accuracy@{k}"]
        assert theirs == pytest.approx(recall[f"image_retrieval_recall@{k}"], abs=1e-9)
    classified = [{"image": image, "label": CLASSES[label]} for image, label in zip(images, labels, strict=True)]
    accuracy = zero_shot(model, processor, classified, templates=["a photo of a {}."]).metrics["acc1"]
    assert found == [pytest.approx(recall["image_retrieval_recall@1"], abs=1e-9), pytest.approx(accuracy, abs=1e-9)]
    assert 0 < accuracy < 1
