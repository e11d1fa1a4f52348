"""Images of every kind are embedded in order, and read as they are needed."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_corpus import EXIF_ORIENTATION, random_image
from support.originals import clip
from support.plain import LABELS, LONG_LABELS, plain_image_embeds
from support.threads import assert_threads_agree
from torch.utils.data import DataLoader

from hf_clip.embedding import features as features_module
from hf_clip.embedding import images as images_module
from hf_clip.embedding.images import UnreadableImageError, embed_images, iter_image_embeds
from hf_clip.embedding.texts import embed_texts
from hf_clip.model import image_reading_hf_clip
from hf_clip.zero_shot.classifier import ZeroShotClassifier


def test_every_kind_of_image(any_clip, paths):
    """Alone, in lists, in generators, and mixed."""
    rgb = [Image.open(path).convert("RGB").resize((50, 40)) for path in paths]
    arrays = np.stack([np.asarray(image) for image in rgb])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
    ready = any_clip.processor(images=rgb, return_tensors="pt")
    pixels = ready["pixel_values"]
    expected = plain_image_embeds(any_clip, rgb)
    kinds = {
        "PIL": rgb,
        "tuple": tuple(rgb),
        "arrays": list(arrays),
        "one array": arrays,
        "tensors": list(tensors),
        "one tensor": tensors,
        "generator": (image for image in rgb),
        "mixed": [rgb[0], arrays[1], tensors[2], ready["pixel_values"][3:]],
        "ready": pixels,
        "ready array": pixels.numpy(),
        "processor output": ready,
        "ready batches": [pixels[:2], pixels[2:]],
        "loader": DataLoader(pixels, batch_size=2),
        "loader of mappings": DataLoader([{"pixel_values": row} for row in pixels], batch_size=2),
    }
    for kind, images in kinds.items():
        embeds = embed_images(any_clip.model, any_clip.processor, images, batch_size=2)
        torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-5, msg=lambda text, kind=kind: f"{kind}: {text}")
    for image in (rgb[0], arrays[0], tensors[0], pixels[:1]):
        torch.testing.assert_close(
            embed_images(any_clip.model, any_clip.processor, image), expected[:1], rtol=0, atol=1e-5
        )


def test_a_loader_with_labels_is_refused(any_clip, paths):
    pixels = any_clip.processor(images=[Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
    loader = DataLoader([(row, 1) for row in pixels["pixel_values"]], batch_size=2)
    with pytest.raises(TypeError, match=r"a batch comes with labels .*: give the pixels alone"):
        embed_images(any_clip.model, any_clip.processor, loader)
    alone = embed_images(any_clip.model, any_clip.processor, (pixels for pixels, _ in loader))
    assert len(alone) == len(paths)


def test_files_are_opened_as_the_original_opens_them(tiny, paths, tmp_path):
    """Own mode, not turned upright; as `Path`, `str` or address."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    turned = tmp_path / "turned.png"
    Image.open(paths[0]).save(turned, exif=exif)
    transform = clip.clip._transform(32)
    for path in (*paths, turned):
        expected = embed_images(tiny.model, tiny.processor, transform(Image.open(path))[None])
        assert torch.equal(embed_images(tiny.model, tiny.processor, path), expected)
        assert torch.equal(embed_images(tiny.model, tiny.processor, [str(path)]), expected)
    data = Path(paths[0]).read_bytes().hex()
    address = "data:image/png," + "".join(f"%{data[i : i + 2]}" for i in range(0, len(data), 2))
    assert torch.equal(
        embed_images(tiny.model, tiny.processor, address), embed_images(tiny.model, tiny.processor, paths[0])
    )


class NumberedProcessor:
    """Pixels that tell which image they came from; the earlier an image, the longer it takes."""

    def __init__(self, count: int):
        self.count, self.threads = count, set()

    def __call__(self, images, return_tensors):
        self.threads.add(threading.current_thread())
        time.sleep(0.02 * (1 - images[0] / self.count))
        return {"pixel_values": torch.full((1, 3, 32, 32), float(images[0]))}


def test_order_is_kept_on_threads(tiny, monkeypatch):
    processor = NumberedProcessor(13)
    monkeypatch.setattr(images_module, "features", lambda model, modality, inputs, *_: inputs["pixel_values"])
    numbers = [np.array(number).reshape(1, 1) for number in range(13)]
    batches = list(
        iter_image_embeds(tiny.model, lambda images, **kw: processor([images[0].item()], **kw), numbers,
                          batch_size=2, workers=4)
    )  # fmt: skip
    assert [len(items) for items, _ in batches] == [2] * 6 + [1]
    assert [item.item() for items, _ in batches for item in items] == list(range(13))
    assert torch.cat([pixels[:, 0, 0, 0] for _, pixels in batches]).tolist() == list(range(13))
    assert len(processor.threads) == 4
    assert threading.main_thread() not in processor.threads


@pytest.fixture(params=[("cpu", 1), ("cuda", 2)], ids=lambda param: param[0])
def placed(request, tiny, monkeypatch) -> SimpleNamespace:
    """Where a model is said to be, and how many batches ahead of it images are read; its embeddings are pixels."""
    monkeypatch.setattr(images_module, "features", lambda model, modality, inputs, *_: inputs["pixel_values"])
    device, ahead = request.param
    return SimpleNamespace(
        model=SimpleNamespace(config=tiny.model.config, device=torch.device(device)), device=device, ahead=ahead
    )


@pytest.mark.parametrize(("batch_size", "workers"), [(16, 1), (7, 3)])
def test_reads_a_bounded_number_of_images_ahead(placed, tiny, images, batch_size, workers):
    read = given = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal read
        for read in range(1, 1001):
            yield images[read % 2]

    before, ahead = set(threading.enumerate()), []  # a server of other tests may be up
    for items, _ in iter_image_embeds(placed.model, tiny.processor, endless(), batch_size=batch_size, workers=workers):
        given += len(items)
        ahead.append(read - given)
    assert given == read == 1000
    assert max(ahead) == placed.ahead * batch_size

    embeds = iter_image_embeds(placed.model, tiny.processor, endless(), batch_size=batch_size, workers=workers)
    next(embeds)
    embeds.close()
    assert read == (placed.ahead + 1) * batch_size
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("hf_clip")]


def test_what_threads_do_while_the_model_computes(placed, tiny, images, monkeypatch):
    """A GPU leaves the cores to them; beside a model on the CPU they only download."""
    fetched, decoded, computed, pixels = [], [], [], np.asarray(images[0])

    def open_image(address: str) -> Image.Image:
        fetched.append(address)
        return Image.fromarray(pixels)

    def image_processor(images, **kwargs):
        decoded.append(images[0])
        return tiny.processor.image_processor(images=images, **kwargs)

    def features(model, modality, inputs, *_):
        computed.append(len(inputs["pixel_values"]))
        wanted = min(8, 2 * (len(computed) + placed.ahead))
        deadline = time.monotonic() + 60
        while len(fetched if placed.device == "cpu" else decoded) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(fetched) == wanted
        assert len(decoded) == (2 * len(computed) if placed.device == "cpu" else wanted)
        return inputs["pixel_values"]

    monkeypatch.setattr(images_module, "features", features)
    monkeypatch.setattr(image_reading_hf_clip, "open_image", open_image)
    addresses = [f"https://example.org/{number}.png" for number in range(8)]
    list(iter_image_embeds(placed.model, image_processor, addresses, batch_size=2, workers=2))
    assert sorted(fetched) == addresses
    assert computed == [2] * 4


@pytest.fixture
def broken(tmp_path) -> list[Path]:
    """A text, a folder, nothing, and a file that breaks off."""
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    random_image("RGB", 64, 64, np.random.default_rng(1)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    return [tmp_path / f"{name}.jpg" for name in ("text", "folder", "missing", "cut")]


def test_unreadable_images_among_good_ones(tiny, paths, broken):
    mixed = [broken[0], *paths[:2], broken[1], broken[2], *paths[2:], broken[3], np.zeros(7)]
    failed = []

    def on_error(item, error: Exception) -> None:
        assert threading.current_thread() is threading.main_thread()
        failed.append((item, error))

    batches = list(iter_image_embeds(tiny.model, tiny.processor, mixed, batch_size=2, workers=2, on_error=on_error))
    assert [item for items, _ in batches for item in items] == paths
    expected = embed_images(tiny.model, tiny.processor, paths)
    torch.testing.assert_close(torch.cat([embeds for _, embeds in batches]), expected, rtol=0, atol=1e-6)
    assert [item for item, _ in failed] == [*broken, mixed[-1]]
    assert all(isinstance(error, UnreadableImageError) for _, error in failed)
    for path, error in failed[:-1]:
        assert str(path) in str(error)
    assert "images[9]" in str(failed[-1][1])

    classifier = ZeroShotClassifier(tiny.model, tiny.processor, LABELS)
    assert [item for item, _ in classifier.stream(mixed, on_error=lambda *_: None)] == paths
    for path in broken:
        with pytest.raises(UnreadableImageError, match=path.name) as caught:
            classifier([paths[0], path])
        assert "\n" not in str(caught.value)


def test_progress_is_shown_when_it_takes_long(tiny, paths, monkeypatch):
    bars = []

    class Bar(features_module.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append((options, self))

    monkeypatch.setattr(features_module, "tqdm", Bar)
    ZeroShotClassifier(tiny.model, tiny.processor, LABELS)(paths)
    (texts, text_bar), (images, image_bar) = bars
    assert (texts["delay"], texts["total"], text_bar.n) == (2, len(LABELS), len(LABELS))
    assert (images["delay"], images["total"], image_bar.n) == (2, len(paths), len(paths))


def test_embeddings_can_be_trained_on(tiny, paths):
    """Unlike tensors of inference mode."""
    [(_, batch)] = iter_image_embeds(tiny.model, tiny.processor, paths)
    classifier = ZeroShotClassifier(tiny.model, tiny.processor, LABELS)
    for tensor in (batch, embed_texts(tiny.model, tiny.processor, LABELS), classifier.logits(paths)):
        torch.nn.Linear(tensor.shape[1], 1)(tensor).sum().backward()


def test_threads_may_share_a_model_and_a_processor(any_clip, paths):
    """Images, texts and a classifier at once, with different options."""
    model, processor = any_clip.model, any_clip.processor
    classifier = ZeroShotClassifier(model, processor, LABELS)
    calls = [
        partial(embed_images, model, processor, paths),
        partial(embed_images, model, processor, paths[::-1], batch_size=2, workers=3, normalize=False),
        partial(embed_texts, model, processor, LABELS),
        partial(embed_texts, model, processor, ["a b c d e f g h i j", "a"], batch_tokens=8, truncation=True),
        partial(classifier.logits, paths[:2], batch_size=1),
        partial(lambda paths: torch.tensor([row[0]["score"] for row in classifier(paths, top_k=2)]), paths),
        lambda: torch.tensor([ranked[0]["score"] for _, ranked in classifier.stream(paths[:3], batch_size=2)]),
        lambda: ZeroShotClassifier(model, processor, LONG_LABELS).class_embeds,
    ]
    assert_threads_agree(calls, lambda one, other: torch.allclose(one, other, rtol=0, atol=1e-6))


def test_deterministic_bits_depend_on_neither_batch_place_nor_threads(any_clip, paths, monkeypatch):
    images = [Image.open(path).convert("RGB") for path in paths]
    seen, threads = set(), torch.get_num_threads()
    compute = features_module._features

    def watched(model, modality, inputs, normalize):
        seen.add((len(next(iter(inputs.values()))), torch.get_num_threads()))
        return compute(model, modality, inputs, normalize)

    monkeypatch.setattr(features_module, "_features", watched)
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            for batch_size in (1, 2, len(images)):
                options = {"batch_size": batch_size, "deterministic": True}
                found.append(embed_images(any_clip.model, any_clip.processor, images, **options))
                found.append(embed_images(any_clip.model, any_clip.processor, images[::-1], **options).flip(0))
            found_texts = embed_texts(any_clip.model, any_clip.processor, LABELS[::-1], deterministic=True).flip(0)
            assert torch.equal(found_texts, embed_texts(any_clip.model, any_clip.processor, LABELS, deterministic=True))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert seen == {(1, 1)}
    assert all(torch.equal(embeds, found[0]) for embeds in found)
    torch.testing.assert_close(found[0], embed_images(any_clip.model, any_clip.processor, images), rtol=0, atol=1e-5)
