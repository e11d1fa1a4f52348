"""Data sets of `datasets`: `map` with our processors, and those saved, of the Hub and raw as training data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data_sets import CLASSES, COLORS, picture, png, write_parquet
from support.local_hub import File, LocalHub, Repository
from support.training import make_trainer

from hf_clip import HFCLIPProcessor
from hf_clip.data.read import read_rows
from hf_clip.data.rows import DataError, Rows

pytestmark = pytest.mark.integration


def test_use_changes_no_fingerprint(repositories, family):
    from datasets import Dataset
    from datasets.fingerprint import Hasher

    processor = HFCLIPProcessor.from_pretrained(repositories[family])
    fresh = HFCLIPProcessor.from_pretrained(repositories[family])
    parts = [lambda each: each, lambda each: each.tokenizer, lambda each: each.image_processor]
    before = [Hasher.hash(part(processor)) for part in parts]
    images = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    table = Dataset.from_dict({"text": ["a cat", "two “dogs”", "¿qué?"], "image": [None] * 3})
    prints = set()
    for _ in range(2):
        mapped = table.map(lambda row: processor.tokenizer(row["text"]), remove_columns=["text", "image"])
        prints.add(mapped._fingerprint)
        processor(images=images, text=["another text", "cafe"], return_tensors="pt", padding="max_length")
    assert len(prints) == 1
    assert [Hasher.hash(part(processor)) for part in parts] == before
    assert [Hasher.hash(part(fresh)) for part in parts] == before


@pytest.fixture
def table():
    """Two images of each of two classes, as `load_dataset` gives them."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    images = [picture(COLORS[name], number) for name in CLASSES for number in range(2)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASSES)})
    return Dataset.from_dict({"image": images, "label": [0, 0, 1, 1]}, features=features)


def check(rows: Rows) -> None:
    assert rows.labels == CLASSES
    assert [row.label for row in rows] == [0, 0, 1, 1]
    for row, expected in zip(rows, [picture(COLORS[name], n) for name in CLASSES for n in range(2)], strict=True):
        assert np.array_equal(row.open(), expected)


def test_a_saved_data_set_is_read(table, tmp_path: Path):
    from datasets import DatasetDict

    table.save_to_disk(tmp_path / "saved")
    check(read_rows(tmp_path / "saved"))
    DatasetDict({"train": table}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match="is a DatasetDict of train: give one of them"):
        read_rows(tmp_path / "splits")
    check(read_rows(tmp_path / "splits" / "train"))


def test_a_data_set_of_the_hub_is_read(tmp_path: Path):
    """In a process of its own: datasets knows the Hub's address from the time of its import."""
    images = [(name, png(picture(COLORS[name], number))) for name in CLASSES for number in range(2)]
    rows = [{"image": {"bytes": image, "path": None}, "label": name} for name, image in images]
    content = write_parquet(tmp_path / "test.parquet", rows).read_bytes()
    with LocalHub() as hub:
        repository = hub.repositories.setdefault("somebody/colors", Repository(False))
        repository.add("main", "first", {"data/test-00000-of-00001.parquet": File.of(content)})
        code = (
            "from hf_clip.data.read import read_rows\n"
            "rows = read_rows('hf://datasets/somebody/colors@main:test')\n"
            "print(rows.labels, [row.open().size for row in rows])\n"
        )
        environment = os.environ | hub.environment(tmp_path / "home")
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == f"{CLASSES} {[(40, 30)] * 4}\n", done.stderr


@pytest.mark.training
def test_the_trainer_takes_a_raw_data_set(repositories, table, tmp_path: Path):
    """Its ClassLabel has the names; one with a transform is taken as it comes, which may augment images."""
    trainer = make_trainer(
        repositories["tiny ViT"], tmp_path, train_dataset=table, loss="classes", per_device_train_batch_size=4
    )
    check(trainer.train_dataset.rows)
    assert trainer.train().global_step == 2
    turned = table.with_transform(lambda rows: {"image": rows["image"], "text": [f"a {n}" for n in rows["label"]]})
    trainer = make_trainer(repositories["tiny ViT"], tmp_path, train_dataset=turned, per_device_train_batch_size=4)
    assert trainer.train_dataset is turned
    assert trainer.train().global_step == 2
