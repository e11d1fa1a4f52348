"""Token ids and pixels without torch equal those of the classes for transformers, bit for bit."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from support.exports import write_export
from support.image_corpus import FEW_SIZES, MODES, random_image
from support.photos import BROKEN, make_photos
from support.text_corpus import corpus

from hf_clip import HFCLIPImageProcessor
from hf_clip.export.targets import TARGETS, write_settings
from hf_clip.exported.processor import ExportedImageProcessor, ExportedProcessor, ExportedTokenizer
from hf_clip.loading import load_clip
from hf_clip.model.packed_texts_hf_clip import TextTooLongError

LONG = "a very long text " * 40


@pytest.fixture(scope="module")
def clip(repositories):
    return load_clip(repositories["tiny ViT"])


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("exported"), *clip)


@pytest.fixture(scope="module")
def processor(folder) -> ExportedProcessor:
    return ExportedProcessor(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"truncation": True, "return_tensors": "np"},
        {"truncation": True, "max_length": 12, "padding": "max_length", "return_tensors": "np"},
        {"padding": True},
        {},
    ],
)
def test_the_ids_are_those_of_the_tokenizer_for_transformers(processor, clip, options):
    texts = [*corpus(1000), LONG, "", "!!", "<|endoftext|> a"]
    expected = clip[1].tokenizer(texts, verbose=False, **options)["input_ids"]
    actual = processor.tokenizer(texts, **options)["input_ids"]
    assert np.array_equal(actual, expected) if "return_tensors" in options else actual == expected
    assert processor.tokenizer.model_max_length == clip[1].tokenizer.model_max_length


def test_one_text_has_a_list_of_ids(processor, clip):
    assert processor.tokenizer("a cat")["input_ids"] == clip[1].tokenizer("a cat")["input_ids"]


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        (
            ["a", LONG],
            {"return_tensors": "np"},
            TextTooLongError,
            r"text 1 of 2 .* over max_length=77: pass truncation",
        ),
        (["a", 3], {}, ValueError, r"a text must be a str .* text 1 is 3"),
        ("a", {"return_tensors": "pt"}, ValueError, "return_tensors is 'pt': this tokenizer gives np"),
    ],
)
def test_texts_that_cannot_be_encoded_are_named(processor, text, options, error, message):
    with pytest.raises(error, match=message):
        processor.tokenizer(text, **options)


SETTINGS = {
    "as the original": {},
    "both sides": {"size": {"height": 30, "width": 20}, "crop_size": {"height": 25, "width": 25}},
    "a crop larger than the image": {"do_resize": False, "crop_size": {"height": 61, "width": 44}},
    "other values": {"resample": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "rescale_factor": 0.1},
    "not normalized": {"do_normalize": False},
    "8 bits": {"do_normalize": False, "do_rescale": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_pixels_are_those_of_the_processor_for_transformers(name, clip, tmp_path):
    small = {"size": {"shortest_edge": 33}, "crop_size": {"height": 32, "width": 32}}
    image_processor = HFCLIPImageProcessor(**(small | SETTINGS[name]))
    model, processor = clip
    settings = type(processor)(image_processor, processor.tokenizer)
    write_settings(tmp_path, TARGETS["transformers.js"], model.config, settings)
    generator = np.random.default_rng(0)
    images = [random_image(mode, *size, generator) for mode in MODES for size in (*FEW_SIZES[:3], (97, 130), (40, 7))]
    actual = ExportedImageProcessor(tmp_path)(images)["pixel_values"]
    expected = image_processor(images, return_tensors="np")["pixel_values"]
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()


def test_files_and_arrays_are_images_too(processor, clip, tmp_path):
    photos = make_photos(tmp_path / "photos")
    sources = [str(photos / "0.png"), photos / "b" / "1.jpg", np.asarray(Image.open(photos / "0.png").convert("RGB"))]
    actual = processor(images=sources, text=["a cat", "two dogs"])
    expected = clip[1](images=sources, text=["a cat", "two dogs"], return_tensors="np", padding=True)
    assert actual.keys() == expected.keys()
    for name in actual:
        assert np.array_equal(actual[name], expected[name])


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images is empty"),
        ([3], TypeError, r"images\[0\]: an image is a PIL image, an array, a path or a URL, not int"),
        ([np.zeros((3, 5, 5), np.float32)], ValueError, "float32 and shape .* is no image"),
        ([Image.new("RGB", (0, 5))], ValueError, r"images\[0\]: an image of size 0x5 has no pixels"),
        (["BROKEN"], OSError, rf"images\[0\].*{BROKEN}.*cannot identify image"),
        ([Image.new("1", (1, 300_000))], ValueError, r"images\[0\]: .* pixels would become"),
    ],
)
def test_images_that_cannot_be_prepared_are_named(processor, images, error, message, tmp_path):
    (tmp_path / BROKEN).write_text("no image")
    with pytest.raises(error, match=message):
        processor.image_processor([tmp_path / BROKEN if isinstance(image, str) else image for image in images])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", "{}", None),
        ("preprocessor_config.json", "[", "preprocessor_config.json cannot be read"),
        ("preprocessor_config.json", '{"size": {"longest_edge": 9}}', "resizes images to .* needs load_clip and torch"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("preprocessor_config.json", "[" * 100_000, "it is nested too deep"),
        ("tokenizer_config.json", '{"model_max_length": "9"}', "model_max_length is '9'"),
        *(
            ("preprocessor_config.json", json.dumps({name: value}), f"does not fit CLIP .(it|{name})")
            for name, value in [
                ("size", 5),
                ("size", {"shortest_edge": 10**9}),
                ("size", {"shortest_edge": 0}),
                ("crop_size", None),
                ("size", {"shortest_edge": "x"}),
                ("crop_size", {"height": 10**9, "width": 10**9}),
                ("resample", 99),
                ("rescale_factor", "x"),
                ("rescale_factor", float("nan")),
                ("image_mean", ["a"] * 3),
                ("image_mean", None),
                ("image_std", [0, 0, 0]),
                ("rescale_factor", 0),
                ("rescale_factor", 1e308),
            ]
        ),
    ],
)
def test_a_damaged_folder_is_named(folder, file, content, message, tmp_path):
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "hf_clip_export.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / file).write_text(content)
    if message is None:  # what is not said is as in the original
        image = Image.radial_gradient("L")
        expected = HFCLIPImageProcessor()(image, return_tensors="np")["pixel_values"]
        assert np.array_equal(ExportedProcessor(tmp_path)(images=image)["pixel_values"], expected)
    else:
        with pytest.raises(ValueError, match=message):
            ExportedProcessor(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens: tokens.pop("<|endoftext|>"), re.escape("is not a tokenizer of CLIP: it lacks <|endoftext|>")),
        (None, "has added tokens, such as <dog>: load the folder with load_clip and torch"),
    ],
)
def test_another_tokenizer_is_refused(folder, change, message, tmp_path):
    content = json.loads((folder / "tokenizer.json").read_text())
    if change is None:
        added = {"id": 49408, "content": "<dog>", "special": False}
        content["added_tokens"].append(content["added_tokens"][0] | added)
    else:
        change(content["model"]["vocab"])
        content["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        ExportedTokenizer(tmp_path)
