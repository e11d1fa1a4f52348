"""Batches of dicts go in and come out, with the original's pixels and the bits of `embed_images`."""

import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.photos import READABLE, load, make_photos

from hf_clip import ImageEmbedder, ImagePreprocessor, TextEmbedder, embed_images, embed_texts


@pytest.fixture
def clip(repositories, family):
    return load(repositories[family])


def images(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + i % 7, 50 - i % 5, 3), np.uint8)) for i in range(count)]


def test_any_division_into_batches_gives_the_bits_of_full_batches(clip):
    model, processor = clip
    some = images(32)
    expected = embed_images(model, processor, some, batch_size=8).numpy()
    preprocess, embed = ImagePreprocessor(processor), ImageEmbedder((model, processor), batch_size=8)
    order = np.random.default_rng(1).permutation(len(some))
    for start in range(0, len(some), 5):
        rows = order[start : start + 5]
        found = embed(preprocess({"image": [some[row] for row in rows], "row": rows}))
        assert found["row"].tolist() == rows.tolist()
        assert np.array_equal(found["embedding"], expected[rows])
    whole = embed(preprocess({"image": some}))
    assert np.array_equal(whole["embedding"], expected)


def test_bytes_paths_and_images_give_the_same_pixels(clip, tmp_path):
    photos = make_photos(tmp_path / "photos")
    paths = [str(photos / name) for name in READABLE]
    contents = [(photos / name).read_bytes() for name in READABLE]
    kinds = [
        paths,
        np.array(paths),
        contents,
        [Image.open(io.BytesIO(content)) for content in contents],
        [{"bytes": content, "path": None} for content in contents],
        [{"bytes": None, "path": path} for path in paths],
    ]
    batches = [ImagePreprocessor(clip[1])({"image": kind})["pixels"] for kind in kinds]
    expected = clip[1](images=paths, return_tensors="pt")["pixel_values"]
    for pixels in batches:
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, batches[0])
    assert torch.equal(ImageEmbedder(clip)._normalized(torch.from_numpy(batches[0])), expected)


@pytest.mark.parametrize("broken", [b"no image", b"", "nowhere.png", None, "", 7], ids=repr)
def test_a_broken_image_is_a_row_with_an_error(clip, broken):
    batch = ImagePreprocessor(clip[1])({"image": [*images(1), broken], "key": ["a", "b"]})
    found = ImageEmbedder(clip)(batch)
    assert found["error"][0] is None
    assert "cannot read" in found["error"][1]
    assert np.isnan(found["embedding"]).all(1).tolist() == [False, True]
    alone = ImageEmbedder(clip)(ImagePreprocessor(clip[1])({"image": [broken]}))
    assert np.isnan(alone["embedding"]).all()
    assert alone["embedding"].shape == (1, 64)


def test_an_image_too_large_to_decode_is_a_row_with_an_error(clip, monkeypatch):
    buffer = io.BytesIO()
    Image.new("1", (400, 400)).save(buffer, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    found = ImagePreprocessor(clip[1])({"image": [buffer.getvalue()]})
    assert "exceeds limit" in found["error"][0]


def test_an_empty_batch_stays_empty(clip):
    found = ImageEmbedder(clip)(ImagePreprocessor(clip[1])({"image": []}))
    assert found["embedding"].shape == (0, 64)
    assert len(found["error"]) == 0


def test_texts_are_embedded_and_missing_ones_are_not(clip):
    texts = ["a cat", None, "two dogs " * 60, "  "]
    found = TextEmbedder(clip)({"text": texts, "key": [0, 1, 2, 3]})
    assert found["key"] == [0, 1, 2, 3]
    expected = embed_texts(*clip, [texts[0], texts[2]], truncation=True).numpy()
    assert np.array_equal(found["text_embedding"][[0, 2]], expected)
    assert np.isnan(found["text_embedding"][[1, 3]]).all()


def test_each_process_loads_its_own_model(repositories, family):
    folder = str(repositories[family])
    batch = {"image": images(3), "text": ["a", "b", "c"]}
    for maker in (ImagePreprocessor, TextEmbedder):
        made = maker(folder)
        first = made(batch)
        copied = pickle.loads(pickle.dumps(made))
        name = "pixels" if maker is ImagePreprocessor else "text_embedding"
        assert len(pickle.dumps(made)) < 1000
        assert np.array_equal(copied(batch)[name], first[name])
    embed = ImageEmbedder(folder, batch_size=4)
    pixels = ImagePreprocessor(folder)(batch)
    expected = embed(pixels)["embedding"]
    assert embed.loaded() is embed.loaded()
    assert np.array_equal(pickle.loads(pickle.dumps(embed))(pixels)["embedding"], expected)


def test_pixels_of_another_size_are_refused(clip):
    with pytest.raises(ValueError, match=r"pixels are \(3, 5, 5\), the model reads \(3, \d+, \d+\)"):
        ImageEmbedder(clip)({"pixels": np.zeros((2, 3, 5, 5), np.uint8)})


def test_a_data_loader_runs_them_in_its_workers(clip, tmp_path):
    photos = make_photos(tmp_path / "photos")
    paths = [str(photos / name) for name in READABLE]
    preprocess = ImagePreprocessor(clip[1])
    loader = torch.utils.data.DataLoader(paths, batch_size=3, collate_fn=lambda some: preprocess({"image": some}))
    rows = np.concatenate([ImageEmbedder(clip, batch_size=3)(batch)["embedding"] for batch in loader])
    np.testing.assert_allclose(rows, embed_images(*clip, paths, batch_size=3), atol=1e-6)


def test_what_writes_parts_in_a_worker_needs_no_torch():
    code = "import sys, hf_clip.embedding.ray_engine; sys.exit('torch' in sys.modules)"
    lazy = {**os.environ, "HF_CLIP_LAZY": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=lazy).returncode == 0
