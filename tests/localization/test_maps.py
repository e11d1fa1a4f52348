"""`where` and `attention_maps` on tiny models and on those that know shapes."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_corpus import random_image
from support.plain import load, plain_text_embeds
from support.threads import assert_threads_agree

import hf_clip
from benchmarks.localization import ALL_TEXTS, MEASURES, Layout, measures, pictures
from examples.train_shapes import CHECKPOINTS
from hf_clip.localization.geometry import View, view
from hf_clip.localization.maps import ALL_METHODS, SCALES, window_maps
from hf_clip.localization.relevance import METHODS, attention_weights, grid

TEXTS = ["a cat", "two dogs"]


@pytest.fixture
def clip(repositories, family) -> SimpleNamespace:
    return load(repositories[family])


@pytest.fixture
def image() -> Image.Image:
    return random_image("RGB", 70, 40, np.random.default_rng(0))


@pytest.fixture
def two_scales(monkeypatch) -> None:
    """Cut windows at two of the five scales, a sixth of them all, where it does not matter which windows there are."""
    monkeypatch.setattr("hf_clip.localization.maps.SCALES", (1, 2))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.usefixtures("two_scales")
@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("size", [(70, 40), (31, 97), (64, 64), (1, 9)])
def test_maps_have_the_size_of_the_image(clip, method, size):
    image = random_image("RGB", *size, np.random.default_rng(1))
    maps = hf_clip.where(clip.model, clip.processor, image, TEXTS, method)
    assert maps.shape == (2, size[1], size[0])
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    seen = ~maps[0].isnan()
    assert seen.float().mean() == pytest.approx(min(size) / max(size), abs=2 / max(size))
    whole = hf_clip.where(clip.model, clip.processor, image, TEXTS, method, whole=True)
    assert whole.shape == maps.shape
    assert not whole.isnan().any()


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_place_is_found_where_it_is(clip, method):
    """A processor that crops a marked square, and maps that follow the mark."""
    image = Image.new("RGB", (90, 60), "gray")
    maps = hf_clip.where(clip.model, clip.processor, image, TEXTS, method)
    columns = (~maps[0].isnan()).all(0).nonzero()[:, 0]
    assert (columns[0].item(), columns[-1].item()) == (15, 74)  # the middle 60


def test_resampling_undoes_resize_and_crop(clip):
    """A map that is the crop's own pixels comes out where these pixels were."""
    x = np.arange(120, dtype=np.uint8)[None].repeat(50, 0)
    image = Image.fromarray(np.stack([x, x, x], -1))
    seen = view(clip.processor, image, clip.model.config.vision_config, whole=False)
    mean, std = clip.processor.image_processor.image_mean[0], clip.processor.image_processor.image_std[0]
    placed = seen.place((seen.pixel_values[:, 0] * std + mean) * 255)[0]
    inside = ~placed.isnan()
    assert inside.sum() == 50 * 50
    assert (placed - torch.from_numpy(x))[:, 40:80].abs().max() < 1.5


def test_shifted_views_show_the_same_pixels_at_the_same_places(clip):
    """Each view's own pixels, taken for a map, come out as those of the first."""
    x = np.arange(120, dtype=np.uint8)[None].repeat(50, 0)
    image = Image.fromarray(np.stack([x, 2 * x, x], -1))
    seen = view(clip.processor, image, clip.model.config.vision_config, whole=False)
    first, *others = [(each, each.place(each.pixel_values[0])) for each in seen.shifted(3, 32)]
    assert len(others) == 8
    for _, placed in others:
        inside = ~first[1].isnan()
        assert not placed[inside].isnan().any()
        assert torch.allclose(placed[:, :, 40:80], first[1][:, :, 40:80], atol=0.02)


@pytest.mark.usefixtures("two_scales")
@pytest.mark.parametrize("method", ALL_METHODS)
def test_shifts_are_the_mean_of_maps_and_of_the_same_extent(clip, image, method):
    once = hf_clip.where(clip.model, clip.processor, image, TEXTS, method)
    shifted = hf_clip.where(clip.model, clip.processor, image, TEXTS, method, shifts=2)
    assert torch.equal(shifted.isnan(), once.isnan())
    assert not same(shifted, once)


def test_dense_scores_are_similarities_less_those_of_the_background(clip, image):
    background = ["a photo", "something else"]
    maps = hf_clip.where(clip.model, clip.processor, image, TEXTS, background=background)
    pixels = clip.processor(images=image, return_tensors="pt").pixel_values
    with torch.no_grad():
        features = torch.nn.functional.normalize(clip.model.get_dense_image_features(pixels)[0], dim=0)
    texts, others = (plain_text_embeds(clip, some) for some in (TEXTS, background))
    expected = torch.einsum("td,dhw->thw", texts, features) - torch.einsum("td,dhw->thw", others, features).mean(0)
    seen = maps[:, :, 15:55]
    assert seen.min() >= expected.min() - 1e-5
    assert seen.max() <= expected.max() + 1e-5
    assert torch.allclose(seen[:, 0, 0], expected[:, 0, 0], atol=1e-5)  # a corner is its nearest position's
    plain = hf_clip.where(clip.model, clip.processor, image, TEXTS, background=())
    assert not same(plain, maps)


def test_attention_weights_are_those_of_eager_attention(repositories, clip, image):
    eager = copy.deepcopy(clip.model)
    eager.set_attn_implementation("eager")
    pixels = clip.processor(images=image, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = eager.vision_model(pixels, output_attentions=True).attentions
    found = attention_weights(clip.model, pixels)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rollout_distributes_all_attention(clip, image, family):
    """Of the class token, which keeps a part itself, and of the pooling."""
    pixels = clip.processor(images=image, return_tensors="pt").pixel_values
    flow = METHODS["rollout"](clip.model, pixels, torch.zeros(3, 64))
    assert flow.shape == (3, *grid(clip.model, pixels))
    assert torch.equal(flow[0], flow[1])
    if "ResNet" in family:
        assert flow[0].sum() == pytest.approx(1, abs=1e-5)
    else:
        assert 0.2 < flow[0].sum() < 1


def test_grad_cam_is_the_gradient_of_a_plain_forward(repositories, image):
    clip = load(repositories["tiny ResNet"])
    directions = plain_text_embeds(clip, TEXTS)
    pixels = clip.processor(images=image, return_tensors="pt").pixel_values
    outputs = clip.model.get_image_features(pixels)  # with gradients: the parameters require them
    scores = directions @ torch.nn.functional.normalize(outputs.pooler_output[0], dim=0)
    for score, found in zip(scores, METHODS["gradient"](clip.model, pixels, directions), strict=True):
        [slope] = torch.autograd.grad(score, outputs.last_hidden_state, retain_graph=True)
        weights = slope[0].mean((1, 2))
        expected = torch.einsum("c,chw->hw", weights, outputs.last_hidden_state[0]).relu()
        torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("two_scales")
@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_call_leaves_nothing_behind(repositories, family, image, method):
    clip = SimpleNamespace(**vars(load(repositories[family])))
    clip.model = copy.deepcopy(clip.model)
    marked = next(clip.model.vision_model.parameters())
    marked.grad = torch.ones_like(marked)
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    config = clip.model.config.to_dict()
    with torch.inference_mode():
        first = hf_clip.where(clip.model, clip.processor, image, TEXTS, method)
    assert same(hf_clip.where(clip.model, clip.processor, image, TEXTS, method), first)
    assert all(torch.equal(value, before[name]) for name, value in clip.model.state_dict().items())
    assert torch.equal(marked.grad, torch.ones_like(marked))
    assert [parameter is marked for parameter in clip.model.parameters() if parameter.grad is not None] == [True]
    assert all(parameter.requires_grad for parameter in clip.model.parameters())
    assert clip.model.config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in clip.model.modules())


def test_frozen_models_have_gradients_too(clip, image):
    frozen = copy.deepcopy(clip.model).requires_grad_(False)
    found = hf_clip.where(frozen, clip.processor, image, TEXTS, "gradient")
    assert same(found, hf_clip.where(clip.model, clip.processor, image, TEXTS, "gradient"))
    assert found.nan_to_num().max() > 0


@pytest.mark.usefixtures("two_scales")
def test_threads_share_a_model(clip, image):
    other = random_image("L", 33, 61, np.random.default_rng(3))
    calls = [
        lambda method=method, each=each: hf_clip.where(clip.model, clip.processor, each, TEXTS, method)
        for method in ALL_METHODS
        for each in (image, other)
    ]
    assert_threads_agree(calls, same)


def test_windows_score_what_lies_around_each_place(clip):
    """The value in the middle of a window is that of the window embedded alone."""
    image = random_image("RGB", 90, 60, np.random.default_rng(4))
    side = clip.model.config.vision_config.image_size
    seen = view(clip.processor, image, clip.model.config.vision_config, whole=True)
    crops, (rows, columns), covered = seen.windows(side, side // 4)
    assert crops.shape == (rows * columns, 3, side, side)
    assert seen.count_windows(side, side // 4) == len(crops)
    assert torch.equal(crops[columns + 1], seen.pixel_values[0, :, :side, :side])  # one step in, where padding ends
    texts = plain_text_embeds(clip, TEXTS)
    maps = window_maps(clip.model, clip.processor, image, texts, True, 1)
    with torch.no_grad():
        embeds = torch.nn.functional.normalize(clip.model.encode_image(crops[columns + 1 : columns + 2])[0], dim=0)
    assert torch.allclose(maps[0][:, 29:31, 29:31].mean((1, 2)), texts @ embeds, atol=5e-3)
    assert covered == pytest.approx((7.5, 7.5, 82.5, 52.5), abs=1)
    finer = window_maps(clip.model, clip.processor, image, texts, True, 2)
    assert torch.allclose(finer[0][:, 29:31, 29:31].mean((1, 2)), texts @ embeds, atol=5e-3)


def test_windows_of_every_scale_lie_where_the_image_does(clip):
    """A window of half the short side is scored as a crop of that half is."""
    side = clip.model.config.vision_config.image_size
    image = random_image("RGB", 2 * side, 2 * side, np.random.default_rng(4))
    texts = plain_text_embeds(clip, TEXTS)
    half = window_maps(clip.model, clip.processor, image, texts, True, 1)[SCALES.index(2)]
    # at scale 2 this image is read as it is
    crop = image.crop((side // 2, side // 2, side // 2 + side, side // 2 + side))
    pixels = clip.processor(images=crop, return_tensors="pt").pixel_values
    with torch.no_grad():
        embeds = torch.nn.functional.normalize(clip.model.encode_image(pixels)[0], dim=0)
    assert torch.allclose(half[:, side - 1 : side + 1, side - 1 : side + 1].mean((1, 2)), texts @ embeds, atol=5e-3)
    maps = hf_clip.where(clip.model, clip.processor, image, TEXTS, "windows", whole=True, background=())
    scales = window_maps(clip.model, clip.processor, image, texts, True, 1)
    assert (maps <= scales.amax(0) + 1e-6).all()


def test_an_image_of_too_many_windows_is_refused_before_they_are_cut(clip, monkeypatch):
    monkeypatch.setattr(View, "windows", None)
    with pytest.raises(ValueError, match=r"has [\d,]+ windows, more than 8,192: crop it"):
        hf_clip.where(clip.model, clip.processor, Image.new("RGB", (40, 9)), TEXTS, "windows", whole=True, shifts=8)


@pytest.mark.usefixtures("two_scales")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ALL_METHODS)
def test_half_precision_and_autocast(repositories, family, clip, image, dtype, method):
    exact = hf_clip.where(clip.model, clip.processor, image, TEXTS, method)
    half = load(repositories[family], dtype=dtype)
    found = [hf_clip.where(half.model, half.processor, image, TEXTS, method)]
    with torch.autocast("cpu", dtype):
        found.append(hf_clip.where(clip.model, clip.processor, image, TEXTS, method))
    for maps in found:
        assert maps.dtype == torch.float32
        assert (maps - exact).nan_to_num().abs().max() < 0.05 + 0.1 * exact.nan_to_num().abs().max()


@pytest.mark.usefixtures("two_scales")
def test_compiled_models_map_as_others(clip, image):
    compiled = torch.compile(clip.model, backend="eager")
    for method in ALL_METHODS:
        expected = hf_clip.where(clip.model, clip.processor, image, TEXTS, method)
        assert same(hf_clip.where(compiled, clip.processor, image, TEXTS, method), expected)


@pytest.mark.usefixtures("two_scales")
def test_optimized_models_map_or_say_why_not(clip, image):
    optimized = copy.deepcopy(clip.model).optimize_for_inference()
    for method in ("dense", "rollout", "windows"):
        found = hf_clip.where(optimized, clip.processor, image, TEXTS, method)
        assert torch.allclose(
            found, hf_clip.where(clip.model, clip.processor, image, TEXTS, method), atol=1e-5, equal_nan=True
        )
    with pytest.raises(ValueError, match="an optimized model has no gradients: use method='dense'"):
        hf_clip.where(optimized, clip.processor, image, TEXTS, "gradient")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"texts": []}, "texts is empty"),
        ({"texts": "a cat"}, "texts is a list of texts"),
        ({"method": "magic"}, "there is no method 'magic': choose from dense, gradient, rollout, windows"),
        ({"image": [Image.new("RGB", (9, 9))] * 2}, "image is a list: pass one PIL image"),
        ({"shifts": 0}, "shifts is 0: choose 1 or more"),
        ({"image": "absent.png"}, "absent.png"),
        ({"image": Image.new("RGB", (9_000, 1)), "whole": True}, "more than 4096 positions"),
    ],
)
def test_bad_input_is_named(clip, image, options, problem):
    options = {"image": image, "texts": TEXTS, **options}
    with pytest.raises((ValueError, TypeError, OSError), match=problem):
        hf_clip.where(clip.model, clip.processor, **options)


@pytest.mark.usefixtures("two_scales")
@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_stock_model_gives_the_same_maps(tiny, image, folders, method):
    stock = load(folders["transformers"])
    expected = hf_clip.where(tiny.model, tiny.processor, image, TEXTS, method)
    before = [(parameter, parameter.data_ptr()) for parameter in stock.model.parameters()]
    assert type(stock.model).__name__ == "CLIPModel"
    assert same(hf_clip.where(stock.model, tiny.processor, image, TEXTS, method), expected)
    theirs = hf_clip.where(stock.model, stock.processor, image, TEXTS, method)  # whose processor resizes a little apart
    assert torch.allclose(theirs, expected, rtol=0, atol=0.01, equal_nan=True)
    maps = hf_clip.attention_maps(stock.model, tiny.processor, image, heads=[0])
    assert same(maps, hf_clip.attention_maps(tiny.model, tiny.processor, image, heads=[0]))
    assert all(parameter.data_ptr() == place and parameter.grad is None for parameter, place in before)


@pytest.mark.usefixtures("two_scales")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_stock_model_in_half_precision(folders, image, dtype):
    stock, half = load(folders["transformers"]), load(folders["transformers"], dtype=dtype)
    for method in ALL_METHODS:
        exact = hf_clip.where(stock.model, stock.processor, image, TEXTS, method)
        found = hf_clip.where(half.model, half.processor, image, TEXTS, method)
        assert (found - exact).nan_to_num().abs().max() < 0.05 + 0.1 * exact.nan_to_num().abs().max()


def test_other_models_are_named(tiny, image):
    with pytest.raises(TypeError, match="HFCLIPTextModel has no get_dense_image_features"):
        hf_clip.where(tiny.model.text_model, tiny.processor, image, TEXTS)
    with pytest.raises(ValueError, match="training mode"):
        hf_clip.where(copy.deepcopy(tiny.model).train(), tiny.processor, image, TEXTS)


def test_attention_of_layers_and_heads(clip, image, family):
    maps = hf_clip.attention_maps(clip.model, clip.processor, image, layers=[0, -1])
    assert maps.shape == (2, 1, 40, 70)
    config = clip.model.config.vision_config
    each = hf_clip.attention_maps(
        clip.model, clip.processor, image, [-1], heads=range(config.num_attention_heads), whole=True
    )
    mean = hf_clip.attention_maps(clip.model, clip.processor, image, whole=True)
    assert torch.allclose(each.mean(1, keepdim=True), mean, atol=1e-6)
    layers = 1 if "ResNet" in family else 2
    with pytest.raises(ValueError, match=f"there is no layer 7: choose from -{layers} to {layers - 1}"):
        hf_clip.attention_maps(clip.model, clip.processor, image, [7])
    with pytest.raises(ValueError, match="there is no head 99"):
        hf_clip.attention_maps(clip.model, clip.processor, image, heads=[99])


@pytest.mark.parametrize(
    ("family", "method", "measure", "wanted"),
    [
        ("resnet", "dense", "nearer to it", 0.95),
        ("vit", "gradient", "nearer to it", 0.7),
        pytest.param("resnet", "windows", "in the shape", 0.9, marks=pytest.mark.slow),
        pytest.param("vit", "windows", "in the shape", 0.9, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("layout", [Layout.oblong, Layout.square])
def test_maps_point_at_shapes(family, method, measure, wanted, layout):
    """On 20 pictures of two shapes; `python -m benchmarks.localization` measures 500."""
    if layout is Layout.square and method != "windows":
        pytest.skip("the other methods read a square picture once, at the model's own size")
    source = str(CHECKPOINTS[family])
    model, processor = hf_clip.load_clip(source)
    right = []
    for image, texts, masks in pictures(20, layout=layout):
        maps = hf_clip.where(model, processor, image, texts, method, whole=True, background=ALL_TEXTS)
        right += [
            measures(map.numpy(), *pair)[MEASURES.index(measure)]
            for map, pair in zip(maps, (masks, masks[::-1]), strict=True)
        ]
    assert np.mean(right) >= wanted
