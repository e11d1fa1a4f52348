"""Zero-shot classification equals the plain path, encodes each text once, and reads images as they are needed."""

import copy
import functools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import FAMILIES, clip
from image_corpus import EXIF_ORIENTATION, random_image
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel

from conversion.convert import Layout, convert
from hf_clip import HFCLIPModel, HFCLIPTextModelWithProjection, HFCLIPVisionModelWithProjection, zero_shot
from hf_clip.zero_shot import (
    OtherModelError,
    UnreadableImageError,
    ZeroShotClassifier,
    embed_images,
    embed_labels,
    embed_texts,
    iter_image_embeds,
)

LABELS = ["cat", "dog", "bird", "horse"]
LONG_LABELS = ["a very large and rather old lighthouse by the sea", "cat", "sailing boat", "Zugspitzbahn", "dog"]
TEMPLATES = ["a photo of a {}.", "a blurry photo of the {} in the evening.", "{}"]
STOCK = "transformers"


@functools.cache
def load(folder: Path, **options) -> SimpleNamespace:
    """Model and processor, for tests that leave them as they are."""
    model = AutoModel.from_pretrained(folder, **options).eval()
    return SimpleNamespace(folder=folder, model=model, processor=AutoProcessor.from_pretrained(folder))


@pytest.fixture(scope="module")
def folders(archives, repositories, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stock") / "tiny"
    convert(str(archives["tiny ViT"]), folder, Layout.transformers, report=lambda _: None)
    return {**repositories, STOCK: folder}


@pytest.fixture(scope="module", params=[*FAMILIES, STOCK])
def any_clip(request, folders) -> SimpleNamespace:
    """Model and processor: both families of ours, and transformers' own CLIP."""
    return load(folders[request.param])


@pytest.fixture(scope="module")
def tiny(folders) -> SimpleNamespace:
    return load(folders["tiny ViT"])


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index, mode in enumerate(["RGB", "L", "P", "RGBA", "1"]):
        random_image(mode, 40 + 7 * index, 90 - 9 * index, generator).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def images(paths) -> list[Image.Image]:
    return [Image.open(path) for path in paths]


@torch.no_grad()
def plain_logits(clip, images, labels, template: str) -> torch.Tensor:
    texts = [template.format(label) for label in labels]
    inputs = clip.processor(text=texts, images=images, padding=True, return_tensors="pt")
    return clip.model(**inputs).logits_per_image


@torch.no_grad()
def plain_image_embeds(clip, images) -> torch.Tensor:
    inputs = clip.processor(images=images, return_tensors="pt")
    embeds = clip.model.get_image_features(**inputs).pooler_output
    return embeds / embeds.norm(dim=-1, keepdim=True)


@torch.no_grad()
def plain_text_embeds(clip, texts) -> torch.Tensor:
    embeds = [
        clip.model.get_text_features(**clip.processor.tokenizer([text], return_tensors="pt")).pooler_output
        for text in texts
    ]
    return torch.cat([row / row.norm(dim=-1, keepdim=True) for row in embeds])


def spy(monkeypatch, model, name: str) -> list[torch.Size]:
    """The shapes of the first input of every call of a model's method."""
    shapes, method = [], getattr(model, name)

    def spied(**inputs):
        shapes.append(next(iter(inputs.values())).shape)
        return method(**inputs)

    monkeypatch.setattr(model, name, spied)
    return shapes


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_equals_the_plain_path(any_clip, images):
    """To the bit where the operations are the same: texts of one length, images in one batch, hf_clip's logits."""
    expected = plain_logits(any_clip, images, LABELS, "a photo of a {}.")
    classifier = ZeroShotClassifier(any_clip.model, any_clip.processor, LABELS)
    logits = classifier.logits(images)
    if isinstance(any_clip.model, HFCLIPModel):
        assert torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    for answer, probabilities in zip(classifier(images, top_k=None), logits.softmax(-1), strict=True):
        assert [(row["label"], row["score"]) for row in answer] == sorted(
            zip(LABELS, probabilities.tolist(), strict=True), key=lambda pair: -pair[1]
        )


def test_texts_of_many_lengths(any_clip, images):
    expected = plain_logits(any_clip, images, LONG_LABELS, "{}")
    classifier = ZeroShotClassifier(any_clip.model, any_clip.processor, LONG_LABELS, "{}")
    torch.testing.assert_close(classifier.logits(images, batch_size=2, workers=2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.03)])
def test_half_precision(folders, family, images, tmp_path, dtype, tolerance):
    """What one precision saved serves another."""
    half, full = load(folders[family], dtype=dtype), load(folders[family])
    expected = plain_logits(full, images, LABELS, "a photo of a {}.")
    ZeroShotClassifier(full.model, full.processor, LABELS).save(tmp_path / "classes")
    made = ZeroShotClassifier(half.model, half.processor, LABELS)
    for classifier in (made, ZeroShotClassifier.load(tmp_path / "classes", half.model, half.processor)):
        logits = classifier.logits(images)
        assert logits.dtype == classifier.class_embeds.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)


def test_ensembles_by_the_mean_of_normalised_prompts(any_clip, images):
    expected = []
    for label in LONG_LABELS:
        mean = plain_text_embeds(any_clip, [template.format(label) for template in TEMPLATES]).mean(0)
        expected.append(mean / mean.norm())
    classifier = ZeroShotClassifier(any_clip.model, any_clip.processor, LONG_LABELS, TEMPLATES)
    torch.testing.assert_close(classifier.class_embeds, torch.stack(expected), rtol=0, atol=1e-6)


def test_top_k(tiny, images):
    classifier = ZeroShotClassifier(tiny.model, tiny.processor, LABELS)
    every = classifier(images, top_k=None)
    assert [len(answer) for answer in every] == [len(LABELS)] * len(images)
    assert classifier(images, top_k=2) == [answer[:2] for answer in every]
    assert classifier(images, top_k=9) == every
    # equal scores come in the order of the labels, as in the pipeline
    classifier.class_embeds = classifier.class_embeds[:1].expand(len(LABELS), -1)
    assert [row["label"] for row in classifier(images[0], top_k=None)[0]] == LABELS


def test_embeddings_can_be_trained_on(tiny, paths):
    """Unlike tensors of inference mode."""
    [(_, batch)] = iter_image_embeds(tiny.model, tiny.processor, paths)
    classifier = ZeroShotClassifier(tiny.model, tiny.processor, LABELS)
    for tensor in (batch, embed_texts(tiny.model, tiny.processor, LABELS), classifier.logits(paths)):
        torch.nn.Linear(tensor.shape[1], 1)(tensor).sum().backward()


# --- texts ------------------------------------------------------------------------------------------------------------


def test_each_text_is_encoded_once_and_never_padded_to_the_context(any_clip, monkeypatch):
    texts = [*LONG_LABELS, *LABELS, *LONG_LABELS]
    shapes = spy(monkeypatch, any_clip.model, "get_text_features")
    embeds = embed_texts(any_clip.model, any_clip.processor, texts, batch_size=3)
    assert sum(rows for rows, _ in shapes) == len(set(texts))
    widths = [width for _, width in shapes]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] < 20
    torch.testing.assert_close(embeds, plain_text_embeds(any_clip, texts), rtol=0, atol=1e-6)


def test_short_and_long_texts_do_not_share_a_batch(tiny, monkeypatch):
    texts = ["dog " * words for words in (70, 1, 30, 2, 45, 14, 60, 15, 16)]  # and two tokens more
    shapes = spy(monkeypatch, tiny.model, "get_text_features")
    embed_texts(tiny.model, tiny.processor, texts)
    assert [tuple(shape) for shape in shapes] == [(3, 16), (2, 18), (2, 47), (2, 72)]


def test_normalize_is_optional(tiny, paths):
    for embed, inputs in ((embed_images, paths), (embed_texts, LABELS)):
        raw = embed(tiny.model, tiny.processor, inputs, normalize=False)
        assert not torch.allclose(raw.norm(dim=-1), torch.ones(len(inputs)))
        unit = embed(tiny.model, tiny.processor, inputs)
        assert torch.equal(raw / raw.norm(dim=-1, keepdim=True), unit)


def test_one_tower_and_its_part_of_the_processor(folders, family, images):
    both = load(folders[family])
    vision = HFCLIPVisionModelWithProjection.from_pretrained(folders[family]).eval()
    text = HFCLIPTextModelWithProjection.from_pretrained(folders[family]).eval()
    image_embeds = embed_images(vision, both.processor.image_processor, images)
    text_embeds = embed_texts(text, both.processor.tokenizer, LABELS)
    assert torch.equal(image_embeds, embed_images(both.model, both.processor, images))
    assert torch.equal(text_embeds, embed_texts(both.model, both.processor, LABELS))
    with pytest.raises(TypeError, match="HFCLIPTextModelWithProjection has no get_image_features"):
        ZeroShotClassifier(text, both.processor, LABELS)
    with pytest.raises(TypeError, match=r"HFCLIP\w+Model gives no image embeddings"):
        embed_images(vision.vision_model, both.processor, images)


# --- images -----------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(zero_shot, "features", lambda model, modality, inputs, normalize: inputs["pixel_values"])
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
    monkeypatch.setattr(zero_shot, "features", lambda model, modality, inputs, normalize: inputs["pixel_values"])
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

    ahead = []
    for items, _ in iter_image_embeds(placed.model, tiny.processor, endless(), batch_size=batch_size, workers=workers):
        given += len(items)
        ahead.append(read - given)
    assert given == read == 1000
    assert max(ahead) == placed.ahead * batch_size

    embeds = iter_image_embeds(placed.model, tiny.processor, endless(), batch_size=batch_size, workers=workers)
    next(embeds)
    embeds.close()
    assert read == (placed.ahead + 1) * batch_size
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hf_clip")]


def test_what_threads_do_while_the_model_computes(placed, tiny, images, monkeypatch):
    """A GPU leaves the cores to them; beside a model on the CPU they only download."""
    fetched, decoded, computed, pixels = [], [], [], np.asarray(images[0])

    def open_image(address: str) -> Image.Image:
        fetched.append(address)
        return Image.fromarray(pixels)

    def image_processor(images, **kwargs):
        decoded.append(images[0])
        return tiny.processor.image_processor(images=images, **kwargs)

    def features(model, modality, inputs, normalize):
        computed.append(len(inputs["pixel_values"]))
        wanted = min(8, 2 * (len(computed) + placed.ahead))
        deadline = time.monotonic() + 10
        while len(fetched if placed.device == "cpu" else decoded) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(fetched) == wanted
        assert len(decoded) == (2 * len(computed) if placed.device == "cpu" else wanted)
        return inputs["pixel_values"]

    monkeypatch.setattr(zero_shot, "features", features)
    monkeypatch.setattr(zero_shot, "open_image", open_image)
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

    class Bar(zero_shot.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append((options, self))

    monkeypatch.setattr(zero_shot, "tqdm", Bar)
    ZeroShotClassifier(tiny.model, tiny.processor, LABELS)(paths)
    (texts, text_bar), (images, image_bar) = bars
    assert (texts["delay"], texts["total"], text_bar.n) == (2, len(LABELS), len(LABELS))
    assert (images["delay"], images["total"], image_bar.n) == (2, len(paths), len(paths))


# --- saved and loaded -------------------------------------------------------------------------------------------------


def test_save_and_load(any_clip, paths, tmp_path):
    saved = ZeroShotClassifier(any_clip.model, any_clip.processor, LONG_LABELS, TEMPLATES)
    saved.save(tmp_path / "new" / "classes.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["classes.safetensors"]
    loaded = ZeroShotClassifier.load(tmp_path / "new" / "classes.safetensors", any_clip.model, any_clip.processor)
    assert torch.equal(loaded.class_embeds, saved.class_embeds)
    assert (loaded.labels, loaded.templates) == (LONG_LABELS, TEMPLATES)
    assert loaded(paths) == saved(paths)


def test_loading_encodes_no_label(tiny, tmp_path, monkeypatch):
    ZeroShotClassifier(tiny.model, tiny.processor, LONG_LABELS).save(tmp_path / "classes")
    shapes = spy(monkeypatch, tiny.model, "get_text_features")
    ZeroShotClassifier.load(tmp_path / "classes", tiny.model, tiny.processor)
    assert [rows for rows, _ in shapes] == [1]


def test_embeddings_of_another_model_are_refused(folders, tmp_path):
    made, other = load(folders["tiny ViT"]), load(folders["tiny ResNet"])
    path = tmp_path / "classes"
    ZeroShotClassifier(made.model, made.processor, LABELS).save(path)
    with pytest.raises(OtherModelError, match=r"made by another model, '.*tiny ViT', than '.*tiny ResNet'"):
        ZeroShotClassifier.load(path, other.model, other.processor)
    tuned = copy.deepcopy(made.model)
    with torch.no_grad():
        tuned.text_model.encoder.layers[0].mlp.fc1.weight *= 1.05
    with pytest.raises(OtherModelError, match="tiny ViT"):
        ZeroShotClassifier.load(path, tuned, made.processor)


def test_files_that_hold_no_class_embeddings(tiny, tmp_path):
    (tmp_path / "text").write_text("no tensors")
    save_file({"class_embeds": torch.zeros(2, 64)}, tmp_path / "foreign")
    for name, error, message in (
        ("text", ValueError, "text is no safetensors file"),
        ("foreign", ValueError, "foreign holds no class embeddings"),
        ("missing", FileNotFoundError, "missing"),
    ):
        with pytest.raises(error, match=message):
            ZeroShotClassifier.load(tmp_path / name, tiny.model, tiny.processor)


def test_a_failed_save_leaves_what_was_there(tiny, tmp_path, monkeypatch):
    classifier = ZeroShotClassifier(tiny.model, tiny.processor, LABELS)
    classifier.save(tmp_path / "classes")
    before = (tmp_path / "classes").read_bytes()

    def fail(tensors, path, metadata):
        Path(path).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(zero_shot, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        classifier.save(tmp_path / "classes")
    assert [path.name for path in tmp_path.iterdir()] == ["classes"]
    assert (tmp_path / "classes").read_bytes() == before


def test_from_pretrained(any_clip, paths):
    expected = ZeroShotClassifier(any_clip.model, any_clip.processor, LABELS, TEMPLATES)
    classifier = ZeroShotClassifier.from_pretrained(any_clip.folder, LABELS, TEMPLATES, device="cpu")
    assert type(classifier.model) is type(any_clip.model)
    assert classifier(paths) == expected(paths)
    assert (
        ZeroShotClassifier.from_pretrained(any_clip.folder, LABELS, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    )


def test_optimize(folders, monkeypatch):
    calls = []
    monkeypatch.setattr(HFCLIPModel, "optimize_for_inference", lambda self: calls.append(self), raising=False)
    classifier = ZeroShotClassifier.from_pretrained(folders["tiny ViT"], LABELS, optimize=True, dtype=torch.bfloat16)
    assert calls == [classifier.model]
    assert classifier.model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"CLIPModel has no optimize_for_inference\(\): leave optimize off"):
        ZeroShotClassifier.from_pretrained(folders[STOCK], LABELS, optimize=True)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], "{}", "labels is empty"),
        ("cat", "{}", "labels is a list of texts, not the one text 'cat'"),
        (["cat", "dog", "cat"], "{}", "labels are given twice: cat"),
        (LABELS, [], "templates is empty"),
        (LABELS, ["{}", "a photo of a cat"], "the template 'a photo of a cat' needs {}"),
        (LABELS, "a {label}", "the template 'a {label}' needs {}"),
        (LABELS, "a {", "the template 'a {' needs {}"),
        ([*LABELS, "word " * 100], "{}", "the text 'word word .* has 102 tokens, the model reads 77.* truncation=True"),
    ],
)
def test_wrong_labels_and_templates(any_clip, labels, templates, message):
    with pytest.raises(ValueError, match=message) as caught:
        ZeroShotClassifier(any_clip.model, any_clip.processor, labels, templates)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images is empty"),
        (iter(()), ValueError, "images is empty"),
        (7, TypeError, "not int"),
        (torch.zeros(2, 3, 40, 40), ValueError, "the images come 40x40 from the processor, the model reads 32x32"),
        ({"image": 1, "label": 2}, ValueError, "a batch needs pixel_values, this one has image, label"),
    ],
)
def test_wrong_images(tiny, images, error, message):
    with pytest.raises(error, match=message):
        ZeroShotClassifier(tiny.model, tiny.processor, LABELS).logits(images)


def test_wrong_parts(tiny, folders, paths):
    resnet = load(folders["tiny ResNet"])
    with pytest.raises(ValueError, match=r"come 64x64 from the processor, the model reads 32x32: use the processor of"):
        embed_images(tiny.model, resnet.processor, paths)
    uncropped = copy.deepcopy(tiny.processor)
    uncropped.image_processor.do_center_crop = False
    with pytest.raises(
        ValueError, match=r"come \d+x\d+ from the processor, the model reads 32x32: use the processor of"
    ):
        embed_images(tiny.model, uncropped, paths)
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=10))
    with pytest.raises(TypeError, match="BertModel has no get_image_features"):
        ZeroShotClassifier(bert, tiny.processor, LABELS)
    with pytest.raises(ValueError, match=r"training mode: call model.eval\(\)"):
        embed_images(copy.deepcopy(resnet.model).train(), resnet.processor, paths)
    with pytest.raises(ValueError, match="texts is empty"):
        embed_texts(tiny.model, tiny.processor, [])
    embeds = embed_labels(tiny.model, tiny.processor, ["word " * 100], "{}", truncation=True)
    assert embeds.shape == (1, 64)
