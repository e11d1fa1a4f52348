"""HEIC photos are read once pillow-heif is installed: the pixels that it decodes."""

import numpy as np
import pillow_heif
import pytest
from support.commands import run
from support.image_corpus import random_image
from support.originals import FAMILIES
from support.plain import load

from hf_clip import embed_images

pytestmark = pytest.mark.integration


def test_a_folder_with_heic_photos_is_embedded(repositories, tmp_path, capsys):
    clip = load(repositories[FAMILIES[0]])
    photos, decoded = tmp_path / "photos", tmp_path / "decoded"
    photos.mkdir()
    decoded.mkdir()
    names = ["0.heic", "1.HEIC", "2.heif"]
    for seed, name in enumerate(names):
        image = random_image("RGB", 60 + seed, 40, np.random.default_rng(seed))
        pillow_heif.from_pillow(image).save(photos / name)
        pillow_heif.read_heif(photos / name).to_pillow().save(decoded / f"{seed}.png")
    (photos / "broken.heic").write_bytes((photos / names[0]).read_bytes()[:200])
    assert run("embed", photos, "-o", tmp_path / "out.npy", "-m", clip.folder, "--batch-size", 3) == 0
    assert "1 of 4 images could not be read (broken.heic)" in capsys.readouterr().err
    found = np.load(tmp_path / "out.npy")
    expected = embed_images(clip.model, clip.processor, sorted(decoded.iterdir()), batch_size=3).numpy()
    assert np.array_equal(found, expected)
