"""`datasets.map` runs the callables."""

import numpy as np
import pytest
from support.originals import FAMILIES
from support.photos import READABLE, load, make_photos

from hf_clip import ImageEmbedder, ImagePreprocessor, TextEmbedder, embed_images

pytestmark = pytest.mark.integration
datasets = pytest.importorskip("datasets")


def test_images_and_captions_of_a_dataset_are_embedded(repositories, tmp_path):
    folder = repositories[FAMILIES[0]]
    photos = make_photos(tmp_path / "photos")
    paths = [str(photos / name) for name in READABLE]
    data = datasets.Dataset.from_dict({"image": paths, "text": ["a cat"] * len(paths)})
    data = data.cast_column("image", datasets.Image(decode=False))
    steps = [ImagePreprocessor(str(folder)), ImageEmbedder(str(folder), batch_size=7), TextEmbedder(str(folder))]

    def embed(batch):
        for step in steps:
            batch = step(batch)
        return batch

    found = data.map(embed, batched=True, batch_size=7, remove_columns=["image"]).with_format("numpy")
    expected = embed_images(*load(folder), paths, batch_size=7).numpy()
    assert np.array_equal(np.array(found["embedding"][:], np.float32), expected)
    assert len(found["text_embedding"][0]) == 64
