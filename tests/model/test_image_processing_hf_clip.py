"""The pixels of the original, to the last bit; and everything around them that users of transformers expect."""

import base64
import functools
import json
import pickle
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.image_corpus import (
    FEW_SIZES,
    MODES,
    RESOLUTIONS,
    UNSUPPORTED_MODES,
    margin_sizes,
    photo_files,
    random_image,
    random_size,
    write_files,
)
from support.originals import clip
from support.served import serving
from support.threads import assert_threads_agree
from torch.utils.data import DataLoader
from torchvision import transforms
from transformers import AutoImageProcessor, CLIPImageProcessor, CLIPImageProcessorPil

from hf_clip import HFCLIPConfig, HFCLIPProcessor, HFCLIPTokenizer
from hf_clip.model import image_processing_hf_clip, pixels_hf_clip
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor, HFCLIPImageProcessorTorchvision
from hf_clip.openai.vocabulary import load_vocabulary

BACKENDS = {"pil": HFCLIPImageProcessor, "torchvision": HFCLIPImageProcessorTorchvision}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

resize = functools.partial(transforms.Resize, interpolation=transforms.InterpolationMode.BICUBIC)
crop, normalize, to_tensor = transforms.CenterCrop, transforms.Normalize(MEAN, STD), transforms.ToTensor()

pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")


@functools.cache
def processor(resolution: int = 224) -> HFCLIPImageProcessor:
    return HFCLIPImageProcessor(size=resolution, crop_size=resolution)


@functools.cache
def original(resolution: int = 224) -> transforms.Compose:
    return clip.clip._transform(resolution)


def pixels(images, **kwargs) -> torch.Tensor:
    return processor()(images, return_tensors="pt", **kwargs).pixel_values


def assert_equals_original(image: Image.Image, resolution: int = 224) -> None:
    actual = processor(resolution)(image, return_tensors="pt").pixel_values
    assert actual.shape == (1, 3, resolution, resolution)
    assert torch.equal(actual[0], original(resolution)(image)), f"{image.mode} {image.size} at {resolution}"


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def photo(generator) -> Image.Image:
    return random_image("RGB", 320, 240, generator)


@pytest.fixture(autouse=True)
def set_threads():
    """One, unless a test sets more: the original's small operations wait for their threads on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- equal to the original --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_original(mode, generator):
    for width, height in FEW_SIZES:
        assert_equals_original(random_image(mode, width, height, generator))


@pytest.mark.parametrize("resolution", [224, *(pytest.param(size, marks=pytest.mark.slow) for size in RESOLUTIONS[1:])])
def test_every_margin_equals_original(resolution, generator):
    sizes = margin_sizes(resolution)
    margins = {(w < h, int(resolution * max(w, h) / min(w, h)) - resolution) for w, h in sizes}
    assert {(tall, margin) for tall in (True, False) for margin in range(1, 9)} <= margins
    for size in sizes:
        assert_equals_original(random_image("RGB", *size, generator), resolution)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_random_images_equal_original(seed):
    generator = np.random.default_rng(seed)
    for index in range(100):
        image = random_image(MODES[index % len(MODES)], *random_size(generator), generator)
        assert_equals_original(image, RESOLUTIONS[seed % len(RESOLUTIONS)])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_margin_of_every_mode_equals_original(mode, generator):
    for size in margin_sizes(224):
        assert_equals_original(random_image(mode, *size, generator))


def test_files_equal_original(tmp_path):
    """Whether the image is given or its path: neither way turns it upright."""
    for file in write_files(tmp_path):
        expected = original()(Image.open(file))
        for given in (Image.open(file), str(file)):
            assert torch.equal(pixels(given)[0], expected), file.name
    assert torch.equal(pixels(file)[0], expected)
    turned = Image.open(tmp_path / "turned_6.jpg")
    assert not torch.equal(pixels(turned), pixels(ImageOps.exif_transpose(turned)))


@pytest.mark.parametrize("resolution", [224, pytest.param(336, marks=pytest.mark.slow)])
def test_photos_equal_original(resolution):
    files = photo_files()
    assert len(files) >= 20
    for file in files:
        assert_equals_original(Image.open(file), resolution)


@pytest.mark.parametrize("size", [(1, 150), (150, 1), (3, 900), (9000, 60)])
def test_slivers_equal_original(size, generator):
    assert_equals_original(random_image("RGB", *size, generator))


def test_every_8_bit_value_equals_original():
    """768 values: ToTensor's x / 255, then Normalize, in float32."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])(image)
    actual = pixels(image, do_resize=False, do_center_crop=False)[0]
    assert len(actual.unique()) == 768
    assert torch.equal(actual, expected)


# --- batches and threads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_batch_equals_singles(threads, set_threads, generator):
    images = [random_image(mode, *random_size(generator), generator) for mode in MODES]
    expected = torch.stack([original()(image) for image in images])
    set_threads(threads)
    assert torch.equal(pixels(images), expected)


def test_one_file_many_times(set_threads, tmp_path, photo):
    """An image that isn't decoded yet is decoded once, whatever the number of threads."""
    set_threads(8)
    photo.save(tmp_path / "photo.png")
    expected = original()(photo)
    for _ in range(5):
        batch = pixels([Image.open(tmp_path / "photo.png")] * 8)
        assert all(torch.equal(values, expected) for values in batch)


class _Images(torch.utils.data.Dataset):
    def __init__(self, images: list[Image.Image]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[index]


@pytest.mark.slow
def test_works_in_forked_workers(set_threads, generator):
    set_threads(2)
    images = [random_image("RGB", 50 + index, 60, generator) for index in range(12)]
    expected = pixels(images)  # threads have run before the fork
    loader = DataLoader(
        _Images(images),
        batch_size=4,
        num_workers=2,
        collate_fn=pixels,
        worker_init_fn=lambda _: set_threads(2),  # it would be one
        timeout=600,
        multiprocessing_context="fork",
    )
    assert torch.equal(torch.cat(list(loader)), expected)


# --- what may be given ------------------------------------------------------------------------------------------------


def test_arrays_and_tensors_equal_their_image(photo):
    array = np.array(photo)
    expected, gray = pixels(photo), pixels(photo.convert("L"))
    channels_first = array.transpose(2, 0, 1)
    cases = [
        (array, expected),
        (channels_first, expected),
        (torch.from_numpy(channels_first.copy()), expected),
        (np.asarray(photo), expected),  # read-only
        (array[..., ::-1][..., ::-1], expected),
        (array[:, ::-1], pixels(ImageOps.mirror(photo))),
        (array.astype(np.int64), expected),
        (array.astype(np.uint16), expected),
        (array.astype(">i4"), expected),
        (torch.from_numpy(array).short(), expected),
        (np.array(photo.convert("RGBA")), pixels(photo.convert("RGBA"))),
        (np.array(photo.convert("L")), gray),
        (np.array(photo.convert("L"))[None], gray),
        (np.array(photo.convert("L")) > 99, pixels(photo.convert("L").point(lambda value: 255 * (value > 99)))),
        (torch.from_numpy(channels_first.copy()).requires_grad_(False)[None], expected),
        (np.stack([array] * 3), expected.repeat(3, 1, 1, 1)),
        ([np.stack([array] * 2), photo], expected.repeat(3, 1, 1, 1)),
        ([[photo], [array, photo]], expected.repeat(3, 1, 1, 1)),
        ((photo, photo), expected.repeat(2, 1, 1, 1)),
    ]
    for index, (given, wanted) in enumerate(cases):
        assert torch.equal(pixels(given), wanted), index
    narrow = np.array(photo)[:, :3]  # three columns look like three channels
    assert torch.equal(pixels(narrow, input_data_format="channels_last"), pixels(Image.fromarray(narrow)))
    grey_alpha = photo.convert("L").convert("LA")
    assert torch.equal(pixels(np.array(grey_alpha), input_data_format="channels_last"), pixels(grey_alpha))


def test_floating_point_arrays_equal_their_image(photo):
    """In 0..255, or in 0..1 as ToTensor makes them; with 8-bit ones in the same batch."""
    array = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert torch.equal(pixels(array.to(dtype)), pixels(photo))
        assert torch.equal(pixels((array / 255).to(dtype), do_rescale=False), pixels(photo))
    assert torch.equal(
        pixels(to_tensor(photo), do_rescale=False, do_normalize=False), pixels(photo, do_normalize=False)
    )
    mixed = pixels([to_tensor(photo), photo], do_rescale=False)
    assert torch.equal(mixed[:1], pixels(photo))
    assert torch.equal(mixed[1:], pixels(photo, do_rescale=False))
    gray = array[:1].float()
    assert torch.equal(pixels(gray), pixels(gray.expand(3, -1, -1)))
    assert not pixels(torch.zeros(9, 9)).isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("low", "high", "do_rescale", "message"),
    [
        (0.0, 1.0, True, "are in 0..1, rescaled already: pass do_rescale=False"),
        (0.0, 0.9, True, "are in 0..1, rescaled already: pass do_rescale=False"),
        (0.0, 255.5, True, "from 0 to 255 with do_rescale=True, here from 0.0 to 255.5"),
        (-1.0, 1.0, True, "here from -1.0 to 1.0"),
        (0.0, 255.0, False, "from 0 to 1 with do_rescale=False, here from 0.0 to 255.0"),
        (float("nan"), 1.0, False, "here from nan to nan"),
    ],
)
def test_refuses_floating_point_arrays_off_their_range(backend, low, high, do_rescale, message):
    with pytest.raises(ValueError, match=rf"images\[0\]: .*{message}"):
        BACKENDS[backend]()(np.linspace(low, high, 81).reshape(9, 9), do_rescale=do_rescale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_of_floating_point_numbers_is_not_taken_for_dark(backend):
    mask = np.eye(224)
    as_booleans, rescaled = (
        BACKENDS[backend]()(image, return_tensors="pt", **options).pixel_values
        for image, options in ((mask > 0, {}), (mask, {"do_rescale": False}))
    )
    assert torch.allclose(as_booleans, rescaled, atol=1e-6)
    with pytest.raises(ValueError, match="pass do_rescale=False"):
        BACKENDS[backend]()(mask)
    assert BACKENDS[backend]()(np.zeros((9, 9)), return_tensors="pt").pixel_values.max() < 0  # black is black


def test_gradients_pass_through_the_torchvision_backend():
    image = (torch.rand(3, 250, 300) * 255).requires_grad_()
    ours, stock = (
        torch.autograd.grad(each(image, return_tensors="pt").pixel_values.square().sum(), image)[0]
        for each in (HFCLIPImageProcessorTorchvision(), CLIPImageProcessor())
    )
    assert ours.count_nonzero() > 0
    # transformers rounds the long side up, the original down
    assert torch.nn.functional.cosine_similarity(ours.flatten(), stock.flatten(), dim=0) > 0.5
    with pytest.raises(ValueError, match=r"images\[0\]: this image requires gradients.*backend='torchvision'"):
        pixels(image)
    with torch.no_grad():
        assert torch.equal(pixels(image), pixels(image.detach()))


def test_urls(tmp_path, photo, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    photo.quantize().save(tmp_path / "photo.png")
    expected = original()(Image.open(tmp_path / "photo.png"))
    with serving(tmp_path) as address:
        assert torch.equal(pixels(f"{address}/photo.png")[0], expected)
        with pytest.raises(OSError, match=r"cannot read 'http://.*/none.png' as an image.*404"):
            pixels(f"{address}/none.png")
    encoded = base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()
    assert torch.equal(pixels(f"data:image/png;base64,{encoded}")[0], expected)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images is empty"),
        ([[], []], ValueError, "images is empty"),
        (None, TypeError, "not NoneType"),
        (7, TypeError, "not int"),
        (np.array([[1, "a"]], object), TypeError, "an array of numbers, not of dtype object"),
        (torch.zeros(9, 9, dtype=torch.complex64), TypeError, r"of real numbers, not of torch.complex64"),
        ([np.zeros((4, 4, 3), np.uint8), None], TypeError, "not NoneType"),
        ("no such file", OSError, r"cannot read 'no such file' as an image \(texts go in `text=`\): .*No such file"),
        ("data:image/png;base64,AAAA", OSError, "cannot identify image file"),
        (Image.new("RGB", (0, 5)), ValueError, r"images\[0\]: an image of size 0x5 has no pixels"),
        (np.zeros((4, 0, 3), np.uint8), ValueError, r"images\[0\]: an image of size 4x0x3 has no pixels"),
        (np.zeros((9, 9, 5), np.uint8), ValueError, r"images\[0\]: .* 1, 3 or 4 channels, .* shape \(9, 9, 5\)"),
        (np.zeros((1, 1, 2, 2, 3), np.uint8), ValueError, r"2 or 3 axes, this one has shape \(1, 1, 2, 2, 3\)"),
        (np.zeros(9, np.uint8), ValueError, r"2 or 3 axes, this one has shape \(9,\)"),
        ([Image.new("L", (4, 4)), np.full((4, 4), 256)], ValueError, r"images\[1\]: integers go from 0 to 255"),
        (np.full((4, 4), -1), ValueError, "here from -1 to -1"),
        (Image.new("RGB", (1, 100_000)), ValueError, "1x100000 pixels would become 224x22400000, more than"),
        ([Image.new(mode, (9, 9)) for mode in UNSUPPORTED_MODES], ValueError, r"images\[0\]: conversion from La to L"),
    ],
)
def test_errors_are_one_clear_sentence(backend, images, error, message):
    with pytest.raises(error, match=message) as caught:
        BACKENDS[backend]()(images, return_tensors="pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broken_image_is_named_by_number_and_file(backend, tmp_path, photo, monkeypatch):
    for suffix in ("png", "jpg", "tif", "gif", "webp", "bmp"):
        photo.save(tmp_path / f"photo.{suffix}")
        whole = (tmp_path / f"photo.{suffix}").read_bytes()
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole[: len(whole) * 2 // 3])
        for broken in (cut, str(cut), Image.open(cut) if suffix != "webp" else cut):
            with pytest.raises(OSError, match=rf"^images\[3\].*cut.{suffix}") as caught:
                BACKENDS[backend]()([photo, tmp_path / f"photo.{suffix}", photo, broken, photo])
            assert "\n" not in str(caught.value)
    photo.resize((500, 300)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(
        Exception, match=r"^images\[1\] \(.*huge.png\): Image size \(150000 pixels\) exceeds limit"
    ) as caught:
        BACKENDS[backend]()([photo, tmp_path / "huge.png"])
    assert isinstance(caught.value, OSError | Image.DecompressionBombError)


def test_photos_are_held_one_by_one(tmp_path, photo, monkeypatch, set_threads):
    """However long the list, no more are open than threads work."""
    set_threads(2)
    photo.save(tmp_path / "photo.png")
    opened: list[weakref.ref[Image.Image]] = []
    most = 0

    def counted(source):
        nonlocal most
        image = open_image(source)
        opened.append(weakref.ref(image))
        most = max(most, sum(each() is not None for each in opened))
        return image

    open_image = image_processing_hf_clip.open_image
    monkeypatch.setattr(image_processing_hf_clip, "open_image", counted)
    both = HFCLIPProcessor(HFCLIPImageProcessor(), HFCLIPTokenizer(*load_vocabulary()))
    for each in (HFCLIPImageProcessor(), HFCLIPImageProcessorTorchvision(), both):
        values = each(images=[Path(tmp_path, "photo.png") for _ in range(40)], return_tensors="pt").pixel_values
        assert len(values) == 40
    assert 0 < most <= 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_may_share_a_processor(backend, photo, set_threads):
    set_threads(1)
    shared = BACKENDS[backend]()
    options = [
        {},
        {"size": 60, "crop_size": 50},
        {"do_normalize": False},
        {"image_mean": [0.0] * 3, "image_std": [1.0] * 3},
        {"do_center_crop": False, "size": {"height": 30, "width": 40}},
        {"do_convert_rgb": False},
        {"do_rescale": False, "do_normalize": False},
    ]
    calls = [partial(shared, [photo, photo.rotate(90)], return_tensors="pt", **each) for each in options]
    before = pickle.dumps(shared.__dict__)
    assert_threads_agree(calls, lambda one, other: torch.equal(one.pixel_values, other.pixel_values))
    assert pickle.dumps(shared.__dict__) == before


@pytest.mark.slow
def test_the_inexact_backend_says_so_once(tmp_path):
    """Also where `use_fast=True` selects it."""
    HFCLIPImageProcessor().save_pretrained(tmp_path)
    code = (
        "import sys, hf_clip; from transformers import AutoImageProcessor\n"
        "for _ in range(2): kind = type(AutoImageProcessor.from_pretrained(sys.argv[1], use_fast=True)).__name__\n"
        "assert kind == 'HFCLIPImageProcessorTorchvision', kind"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr.count("pixels close to the original's, not equal") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"size": {"longest_edge": 9}},
            "size needs 'shortest_edge' or 'height' and 'width', got {'longest_edge': 9}",
        ),
        ({"crop_size": {"shortest_edge": 9}}, "crop_size needs 'height' and 'width'"),
        ({"image_mean": [0.5] * 2}, "image_mean and image_std have 2 and 3 values for 3 channels"),
        ({"do_center_crop": False}, "images of several sizes make no tensor"),
        *(
            ({name: value}, f"{name} is .*: give numbers by which pixel values stay finite")
            for name, values in {
                "rescale_factor": (float("nan"), 0.0, 1e-320, 1e308),
                "image_mean": (float("inf"), [0.0, float("nan"), 0.0]),
                "image_std": (0.0, [1.0, 0.0, 1.0], 1e-45),
            }.items()
            for value in values
        ),
    ],
)
def test_refuses_settings_that_do_not_fit(settings, message, photo):
    with pytest.raises(ValueError, match=message):
        pixels([photo, photo.rotate(90, expand=True)], **settings)


def test_a_refused_image_ends_the_batch(set_threads, photo):
    set_threads(2)
    with pytest.raises(ValueError, match=r"images\[3\]: conversion from La"):
        pixels([photo] * 3 + [Image.new("La", (9, 9))] + [photo] * 3)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_defaults_are_the_originals():
    settings = HFCLIPImageProcessor().to_dict()
    assert settings["size"] == {"shortest_edge": 224}
    assert settings["crop_size"] == {"height": 224, "width": 224}
    assert tuple(settings["image_mean"]) == MEAN
    assert tuple(settings["image_std"]) == STD
    assert settings["resample"] == Image.Resampling.BICUBIC
    assert settings["image_processor_type"] == "HFCLIPImageProcessor"
    assert HFCLIPImageProcessor.backend.fget(None) == "pil"


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_resize": False}, [crop(224)]),
        ({"do_center_crop": False}, [resize(224)]),
        ({"size": 99, "crop_size": 60}, [resize(99), crop(60)]),
        ({"size": 60, "crop_size": 99}, [resize(60), crop(99)]),
        ({"size": {"height": 250, "width": 300}}, [resize((250, 300)), crop(224)]),
        ({"size": {"max_height": 250, "max_width": 400}}, [resize((218, 400)), crop(224)]),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, [resize((164, 300)), crop(224)]),
        ({"crop_size": (30, 40)}, [resize(224), crop((30, 40))]),
        ({"resample": 2}, [transforms.Resize(224, transforms.InterpolationMode.BILINEAR), crop(224)]),
    ],
)
def test_geometry_settings_are_honoured(mode, settings, expected, generator):
    image = random_image(mode, 240, 131, generator)
    shown = transforms.Compose(expected)(image).convert("RGB")
    assert torch.equal(pixels(image, **settings)[0], normalize(to_tensor(shown)))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("resample", list(Image.Resampling)[:6])
def test_every_filter_equals_resize_then_crop(mode, resample, generator):
    """Also on slivers, of which the crop shows little, and where Pillow's two passes change their order."""
    for width, height in [(60, 60), (40, 333), (333, 40), (500, 90), (90, 2000), (7, 301), (225, 224), (448, 900)]:
        image = random_image(mode, width, height, generator)
        short = min(width, height)
        size = (int(224 * width / short), int(224 * height / short))
        expected = crop(150)(image.resize(size, resample)).convert("RGB")
        assert torch.equal(pixels(image, resample=resample, crop_size=150)[0], normalize(to_tensor(expected)))


def test_value_settings_are_honoured(photo):
    shown = crop(224)(resize(224)(photo))
    whole = transforms.functional.pil_to_tensor(shown)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    stretched = transforms.Normalize([0.5] * 3, [0.5, 0.25, 2])(to_tensor(shown))
    cases = [
        ({"do_normalize": False}, to_tensor(shown)),
        ({"do_rescale": False}, (whole.float() - mean) / std),
        ({"do_rescale": False, "do_normalize": False}, whole),
        ({"image_mean": 0.5, "image_std": [0.5, 0.25, 2.0]}, stretched),
        ({"rescale_factor": 1 / 127.5, "do_normalize": False}, whole.float() / 127.5),
        ({"rescale_factor": -1.0, "do_normalize": False}, -whole.float()),
    ]
    for settings, expected in cases:
        for actual in (
            pixels(photo, **settings)[0],
            HFCLIPImageProcessor(**settings)(photo, return_tensors="pt").pixel_values[0],
        ):
            assert actual.dtype == expected.dtype
            assert torch.equal(actual, expected), settings


@pytest.mark.parametrize("mode", ["1", "L", "RGBA", "I", "F"])
def test_without_conversion_a_mode_keeps_its_bands(mode, generator):
    image = random_image(mode, 240, 131, generator)
    shown = crop(224)(resize(224)(image))
    actual = pixels(image, do_convert_rgb=False, do_rescale=False, do_normalize=False)[0]
    array = 255 * np.array(shown) if mode == "1" else np.array(shown)
    assert torch.equal(actual, torch.from_numpy(array).reshape(224, 224, -1).permute(2, 0, 1))
    actual = pixels(image, do_convert_rgb=False, image_mean=0.5, image_std=0.5)[0]
    expected = (torch.from_numpy(array).reshape(224, 224, -1).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
    assert torch.equal(actual, expected)


def test_return_types(photo):
    images = [photo, photo.crop((0, 0, 300, 99))]
    as_tensor, as_array = pixels(images), processor()(images, return_tensors="np").pixel_values
    as_list = processor()(images).pixel_values
    assert as_tensor.dtype == torch.float32
    assert as_tensor.is_contiguous()
    assert isinstance(as_array, np.ndarray)
    assert np.array_equal(as_array, as_tensor)
    assert isinstance(as_list, list)
    assert [values.shape for values in as_list] == [(3, 224, 224)] * 2
    assert np.array_equal(np.stack(as_list), as_tensor)
    ragged = processor()(images, do_center_crop=False).pixel_values
    assert [values.shape for values in ragged] == [(3, 224, 298), (3, 224, 678)]
    padded = processor()(images, do_center_crop=False, do_pad=True, return_tensors="pt").pixel_values
    assert padded.shape == (2, 3, 224, 678)
    assert np.array_equal(padded[0, :, :, :298], ragged[0])
    assert padded[0, :, :, 298:].count_nonzero() == 0


# --- saved and loaded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_save_and_load(backend, tmp_path, photo):
    saved = BACKENDS[backend](size=70, crop_size=60, do_rescale=False, image_mean=[1.0, 2.0, 3.0])
    saved.save_pretrained(tmp_path)
    for loaded in (
        type(saved).from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path, backend=backend),
    ):
        assert type(loaded) is type(saved)
        assert loaded.to_dict() == saved.to_dict()
        assert torch.equal(*(p(photo, return_tensors="pt").pixel_values for p in (saved, loaded)))


@pytest.mark.parametrize("saved", BACKENDS)
def test_auto_class_chooses_the_backend(saved, tmp_path):
    """Asked for none, it gives the exact one, whichever was saved."""
    BACKENDS[saved]().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "HFCLIPImageProcessor"
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is HFCLIPImageProcessor
    for backend, expected in BACKENDS.items():
        assert type(AutoImageProcessor.from_pretrained(tmp_path, backend=backend)) is expected
    HFCLIPConfig().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is HFCLIPImageProcessor


STOCK_SETTINGS = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(MEAN),
    "image_processor_type": "CLIPImageProcessor",
    "image_std": list(STD),
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
OLD_STOCK_SETTINGS = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "resample": 3,
    "size": 224,
}


@pytest.mark.parametrize("settings", [STOCK_SETTINGS, OLD_STOCK_SETTINGS], ids=["stock", "old stock"])
def test_reads_stock_settings(settings, tmp_path, photo):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded = HFCLIPImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(loaded(photo, return_tensors="pt").pixel_values[0], original()(photo))
    assert loaded.to_dict() == HFCLIPImageProcessor().to_dict()


def test_stock_reads_ours(tmp_path, photo):
    processor(336).save_pretrained(tmp_path)
    stock = CLIPImageProcessorPil.from_pretrained(tmp_path)
    square = photo.resize((400, 400))  # no margin, so the two crop alike
    assert stock(square, return_tensors="pt").pixel_values.shape == (1, 3, 336, 336)
    assert dict(stock.size) == {"shortest_edge": 336}


@pytest.mark.slow
def test_remote_code_gives_the_exact_backend(tmp_path, photo):
    """A folder with the code in it, read by a process that knows nothing of hf_clip."""
    script = f"""
import sys
sys.modules["hf_clip"] = None
import torch
from PIL import Image
from transformers import AutoImageProcessor
for again in range(2):
    processor = AutoImageProcessor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
    assert type(processor).__name__ == "HFCLIPImageProcessor", type(processor)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    image = Image.open({str(tmp_path / "photo.png")!r})
    torch.save(processor(image, return_tensors="pt").pixel_values, {str(tmp_path / "pixels.pt")!r})
    processor.save_pretrained({str(tmp_path)!r})
"""
    photo.save(tmp_path / "photo.png")
    remote = type("HFCLIPImageProcessor", (HFCLIPImageProcessor,), {"__module__": HFCLIPImageProcessor.__module__})
    remote.register_for_auto_class()
    remote().save_pretrained(tmp_path)
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "pixels.pt"), pixels(photo))


# --- the torchvision backend ------------------------------------------------------------------------------------------


def test_torchvision_backend_is_close(generator):
    """At most 2 of 255 levels away, and rarely that; a crop off by a pixel would be far away."""
    process = functools.partial(HFCLIPImageProcessorTorchvision(), return_tensors="pt")
    images = [random_image("RGB", *size, generator) for size in margin_sizes(224)]
    images += [Image.open(file) for file in photo_files() if Image.open(file).mode in ("RGB", "L")]
    expected, actual = pixels(images), process(images).pixel_values
    levels = (actual - expected).abs() * torch.tensor(STD)[:, None, None] * 255
    assert levels.max() < 2.01
    assert levels.mean() < 0.02
    array = np.array(images[0])
    for given in (array, torch.from_numpy(array).permute(2, 0, 1), [array]):
        assert torch.equal(process(given).pixel_values, actual[:1])


def test_torchvision_backend_converts_like_pillow(photo):
    process = functools.partial(HFCLIPImageProcessorTorchvision(), return_tensors="pt")
    rgba = photo.convert("RGBA")
    rgba.putalpha(photo.convert("L"))
    for given in (rgba, np.array(rgba), np.array(rgba).transpose(2, 0, 1)):
        assert torch.equal(process(given).pixel_values, process(photo).pixel_values)
    gray = photo.convert("L")
    for given in (gray, np.array(gray), gray.convert("RGB")):
        assert torch.equal(process(given).pixel_values, process(gray).pixel_values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_torchvision_backend_on_a_gpu(photo):
    process = functools.partial(HFCLIPImageProcessorTorchvision(), return_tensors="pt")
    on_gpu = process(torch.from_numpy(np.array(photo)).permute(2, 0, 1).cuda()).pixel_values
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu, process(photo, device="cuda").pixel_values)
    torch.testing.assert_close(on_gpu.cpu(), pixels(photo), atol=0.035, rtol=0)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bound_counts_the_resized_image(backend, monkeypatch):
    monkeypatch.setattr(pixels_hf_clip, "MAX_RESIZED_PIXELS", 224 * 448)
    process = functools.partial(BACKENDS[backend](), return_tensors="pt")
    assert process(Image.new("RGB", (10, 20))).pixel_values.shape == (1, 3, 224, 224)
    assert process(Image.new("RGB", (300, 150))).pixel_values.shape == (1, 3, 224, 224)
    with pytest.raises(ValueError, match="150x301 pixels would become 224x449"):
        process(Image.new("RGB", (150, 301)))
