"""Photos that a phone has turned, and images of 16 bits: ignored as by the original, said, and turned when asked."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import run
from support.image_corpus import EXIF_ORIENTATION
from support.photos import load

from hf_clip import ImageEmbedder, ImagePreprocessor, embed_images
from hf_clip.data.images import ImageRef


@pytest.fixture
def turned(tmp_path):
    """An image stored on its side, with the orientation that turns it; and its pixels as stored and as seen."""
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    path = tmp_path / "photos/turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    return path, Image.fromarray(pixels), Image.fromarray(np.ascontiguousarray(np.rot90(pixels, -1)))


def test_pixels_are_turned_when_asked_and_only_then(turned, repositories, family):
    path, stored, seen = turned
    model, processor = load(repositories[family])
    assert torch.equal(embed_images(model, processor, path), embed_images(model, processor, stored))
    assert torch.equal(embed_images(model, processor, path, exif="apply"), embed_images(model, processor, seen))
    assert np.array_equal(ImageRef.of(path).open("apply"), seen)
    for exif, image in (("ignore", stored), ("apply", seen)):
        found = ImagePreprocessor(processor, exif=exif)({"image": [str(path)]})["pixels"]
        assert np.array_equal(found, ImagePreprocessor(processor)({"image": [image]})["pixels"])


@pytest.mark.parametrize("output", ["out.npy", "parts"])
def test_embed_says_what_it_ignores_and_mixes_nothing(output, turned, repositories, tmp_path, capsys):
    path, stored, _ = turned
    stored.save(path.with_name("upright.png"))
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(path.with_name("deep.png"))
    arguments = ["embed", path.parent, "-o", tmp_path / output, "-m", repositories["tiny ViT"]]
    assert run(*arguments) == 0
    err = capsys.readouterr().err
    assert "1 of 3 images carry a rotation, which is ignored: --exif apply turns them" in err
    assert "1 of 3 images have 16 bits a channel and become white" in err
    assert run(*arguments, "--exif", "apply") == 1
    assert "was made with exif ignore, not exif apply: pass --restart" in capsys.readouterr().err
    assert run(*arguments, "--exif", "apply", "--restart") == 0
    assert "rotation" not in capsys.readouterr().err
    assert run(*arguments) == 1
    assert "was made with exif apply, not exif ignore" in capsys.readouterr().err


def test_drafts_are_close_and_mixed_with_nothing_else(repositories, tmp_path, capsys):
    smooth = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(smooth).resize((900, 600), Image.Resampling.BICUBIC).save(tmp_path / "photos/large.jpg")
    arguments = ["embed", tmp_path / "photos", "-o", tmp_path / "out.npy", "-m", repositories["tiny ViT"]]
    assert run(*arguments) == 0
    full = np.load(tmp_path / "out.npy")
    assert run(*arguments, "--decode", "draft") == 1
    assert "was made with decode full, not decode draft: pass --restart" in capsys.readouterr().err
    assert run(*arguments, "--decode", "draft", "--restart") == 0
    draft = np.load(tmp_path / "out.npy")
    assert not np.array_equal(draft, full)
    assert (draft * full).sum() > 0.999
    model, processor = load(repositories["tiny ViT"])
    photo = str(tmp_path / "photos/large.jpg")
    np.testing.assert_array_equal(embed_images(model, processor, photo, decode="draft"), draft)
    for column, decode in (("full", full), ("draft", draft)):
        pixels = ImagePreprocessor(processor, decode=column)({"image": [photo]})
        np.testing.assert_allclose(ImageEmbedder((model, processor))(pixels)["embedding"], decode, atol=1e-6)
    assert run(*arguments) == 1
    assert "was made with decode draft, not decode full" in capsys.readouterr().err
