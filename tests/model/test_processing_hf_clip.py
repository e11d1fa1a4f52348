"""One call for images and texts: the parts' own outputs, saved, loaded and used as a stock processor is."""

import functools
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_corpus import random_image
from support.originals import clip
from support.threads import assert_threads_agree
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPTokenizer,
)

from hf_clip import (
    HFCLIPConfig,
    HFCLIPImageProcessor,
    HFCLIPImageProcessorTorchvision,
    HFCLIPProcessor,
    HFCLIPTokenizer,
)
from hf_clip.openai.vocabulary import load_vocabulary

TEXTS = ["a cat", "a photo of a large, fluffy dog on a sofa", ""]


@functools.cache
def tokenizer() -> HFCLIPTokenizer:
    vocab, merges = load_vocabulary()
    return HFCLIPTokenizer(vocab=vocab, merges=merges)


@pytest.fixture
def processor() -> HFCLIPProcessor:
    return HFCLIPProcessor(HFCLIPImageProcessor(), tokenizer())


@pytest.fixture
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [random_image("RGB", 320, 213, generator), random_image("P", 120, 300, generator)]


def assert_same(actual, expected) -> None:
    assert same(actual, expected)


# --- calls ------------------------------------------------------------------------------------------------------------


def test_images_and_texts_together(processor, images):
    """As many images and texts as one likes; ragged texts need no further option."""
    inputs = processor(images=images, text=TEXTS, return_tensors="pt")
    assert set(inputs) == {"pixel_values", "input_ids"}
    expected = torch.stack([clip.clip._transform(224)(image) for image in images])
    assert torch.equal(inputs.pixel_values, expected)
    expected = clip.tokenize(TEXTS)
    length = inputs.input_ids.shape[1]
    assert torch.equal(inputs.input_ids, expected[:, :length])
    assert not expected[:, length:].any()


def test_each_alone_is_its_part(processor, images):
    assert_same(processor(images, return_tensors="pt"), processor.image_processor(images, return_tensors="pt"))
    assert_same(processor(images=images[0], return_tensors="pt"), processor(images[:1], return_tensors="pt"))
    assert_same(processor(text=TEXTS, return_tensors="pt"), processor.tokenizer(TEXTS, return_tensors="pt"))
    assert processor(text="a cat")["input_ids"] == tokenizer()("a cat")["input_ids"]
    both = processor(images=images, text=TEXTS)
    assert both["input_ids"] == tokenizer()(TEXTS)["input_ids"]
    assert isinstance(both["pixel_values"], list)
    as_arrays = processor(images=images, text=TEXTS, return_tensors="np")
    assert all(isinstance(values, np.ndarray) for values in as_arrays.values())


def test_paths(processor, images, tmp_path):
    images[1].save(tmp_path / "palette.png")
    inputs = processor(images=[str(tmp_path / "palette.png")], text="a cat", return_tensors="pt")
    assert torch.equal(inputs.pixel_values[0], clip.clip._transform(224)(Image.open(tmp_path / "palette.png")))


def test_options_reach_the_part_that_knows_them(processor, images):
    inputs = functools.partial(processor, images=images, text=TEXTS)
    flat = inputs(size=60, crop_size=50, padding="max_length", truncation=True, max_length=20, return_tensors="pt")
    nested = inputs(
        images_kwargs={"size": 60, "crop_size": 50, "return_tensors": "pt"},
        text_kwargs={"padding": "max_length", "truncation": True, "max_length": 20, "return_tensors": "pt"},
    )
    assert flat.pixel_values.shape == (2, 3, 50, 50)
    assert flat.input_ids.shape == (3, 20)
    assert_same(nested, flat)
    with pytest.raises(ValueError, match="crop_size"):
        inputs(crop_size=50, images_kwargs={"crop_size": 50})
    mask = inputs(return_attention_mask=True, return_tensors="pt").attention_mask
    assert torch.equal(mask.sum(1), torch.tensor([len(ids) for ids in tokenizer()(TEXTS)["input_ids"]]))


def test_settings_of_the_parts_hold(images):
    small = HFCLIPProcessor(HFCLIPImageProcessor(size=60, crop_size=50, do_normalize=False), tokenizer())
    pixel_values = small(images=images, text=TEXTS, return_tensors="pt").pixel_values
    assert pixel_values.shape == (2, 3, 50, 50)
    assert pixel_values.min() >= 0


def test_parts_as_the_stock_pipeline_calls_them(processor, images):
    """The zero-shot pipeline never calls the processor itself."""
    inputs = processor.image_processor(images=[images[0]], return_tensors="pt").to(torch.float16)
    assert inputs.pixel_values.dtype == torch.float16
    texts = processor.tokenizer(TEXTS, return_tensors="pt", padding=True)
    assert_same(texts, processor(text=TEXTS, return_tensors="pt"))


def test_names(processor):
    assert HFCLIPProcessor.get_attributes() == ["image_processor", "tokenizer"]
    assert sorted(processor.model_input_names) == ["input_ids", "pixel_values"]


def test_asking_for_the_mask_by_name_says_how_to_get_it(processor, images):
    batch = processor(images=images, text=TEXTS, return_tensors="pt")
    for each in (batch, batch.to("cpu"), pickle.loads(pickle.dumps(batch)), processor(images=images)):
        with pytest.raises(KeyError, match="return_attention_mask=True"):
            each["attention_mask"]
        with pytest.raises(AttributeError, match="return_attention_mask=True"):
            _ = each.attention_mask
    assert processor(text=TEXTS, return_attention_mask=True)["attention_mask"][0] == [1, 1, 1, 1]


def test_threads_may_share_a_processor(processor, images):
    options = [
        {"images": images, "text": TEXTS},
        {"text": TEXTS, "padding": "max_length", "return_attention_mask": True},
        {"images": images[:1], "crop_size": 50, "size": 60, "text": ["a dog"]},
        {"text": "a b c d", "truncation": True, "max_length": 4},
    ]
    before = pickle.dumps(processor)
    assert_threads_agree([functools.partial(processor, return_tensors="pt", **each) for each in options], same)
    assert pickle.dumps(processor) == before  # no cache for what fingerprints an object, such as datasets.map


def same(actual, expected) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[key], expected[key]) for key in expected)


def test_decodes(processor):
    ids = processor(text=TEXTS)["input_ids"]
    expected = ["a cat", "a photo of a large , fluffy dog on a sofa", ""]
    assert processor.batch_decode(ids, skip_special_tokens=True) == expected
    assert processor.decode(ids[0], skip_special_tokens=True) == "a cat"


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ValueError, "give images, text, or both"),
        ({"text": []}, ValueError, "text is empty"),
        ({"images": []}, ValueError, "images is empty"),
        ({"images": [], "text": "a cat"}, ValueError, "images is empty"),
        ({"images": Image.new("RGB", (5, 0)), "text": "a cat"}, ValueError, "image of size 5x0 has no pixels"),
        ({"text": ["a cat", None]}, ValueError, "text 1 is None"),
        ({"text": [Image.new("RGB", (5, 5))]}, ValueError, r"text 0 is <PIL.*\(images go in `images=`\)"),
        ({"text": np.zeros((9, 9, 3))}, ValueError, r"text 0 is array.*\(images go in `images=`\)"),
        ({"images": "a cat", "text": Image.new("RGB", (5, 5))}, OSError, r"cannot read 'a cat' as an image"),
        ({"images": 5}, TypeError, "an image is a PIL image, .* not int"),
        ({"images": ["a cat"]}, OSError, r"cannot read 'a cat' as an image \(texts go in `text=`\)"),
        ({"text": 5}, (TypeError, ValueError), "text"),
    ],
)
def test_errors_are_one_clear_sentence(processor, inputs, error, message):
    with pytest.raises(error, match=message) as caught:
        processor(**inputs, return_tensors="pt")
    assert "\n" not in str(caught.value)


def test_wrong_parts_are_refused():
    with pytest.raises(TypeError, match="image_processor"):
        HFCLIPProcessor(tokenizer(), HFCLIPImageProcessor())
    with pytest.raises(TypeError, match="tokenizer"):
        HFCLIPProcessor(HFCLIPImageProcessor())


# --- saved and loaded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [HFCLIPProcessor.from_pretrained, AutoProcessor.from_pretrained])
@pytest.mark.parametrize("kind", [HFCLIPImageProcessor, HFCLIPImageProcessorTorchvision])
def test_save_and_load(load, kind, images, tmp_path):
    """The exact backend, unless the other is asked for."""
    saved = HFCLIPProcessor(kind(size=60, crop_size=50), tokenizer())
    saved.save_pretrained(tmp_path)
    arguments = {"images": images, "text": TEXTS, "return_tensors": "pt"}
    for options, expected in (
        ({}, HFCLIPImageProcessor),
        ({"backend": "torchvision"}, HFCLIPImageProcessorTorchvision),
    ):
        loaded = load(tmp_path, **options)
        assert type(loaded) is HFCLIPProcessor
        assert type(loaded.image_processor) is expected
        assert type(loaded.tokenizer) is HFCLIPTokenizer
        assert loaded.to_dict() == saved.to_dict()
        if expected is kind:
            assert_same(loaded(**arguments), saved(**arguments))


def test_parts_load_from_the_processors_folder(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    HFCLIPConfig().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is HFCLIPImageProcessor
    assert type(AutoImageProcessor.from_pretrained(tmp_path, backend="torchvision")) is HFCLIPImageProcessorTorchvision
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is HFCLIPTokenizer
    overridden = AutoProcessor.from_pretrained(tmp_path, size={"shortest_edge": 70})
    assert dict(overridden.image_processor.size) == {"shortest_edge": 70}


def test_reads_a_stock_folder(processor, images, tmp_path):
    """Its settings, with the exact parts."""
    vocab, merges = load_vocabulary()
    stock = CLIPProcessor(CLIPImageProcessorPil(crop_size=200), CLIPTokenizer(vocab=vocab, merges=merges))
    stock.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    loaded = HFCLIPProcessor.from_pretrained(tmp_path)
    assert type(loaded.image_processor) is HFCLIPImageProcessor
    assert type(loaded.tokenizer) is HFCLIPTokenizer
    arguments = {"images": images, "text": TEXTS, "return_tensors": "pt"}
    assert_same(loaded(**arguments), processor(**arguments, crop_size=200))
    assert type(AutoProcessor.from_pretrained(tmp_path)) is CLIPProcessor
