"""`datasets.map` with our processors: cached, and not computed again after mere use."""

import pytest
from PIL import Image

from hf_clip import HFCLIPProcessor

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
