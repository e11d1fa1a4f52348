"""Other pixels than OpenAI's: exactly those of open_clip's own transform, in every mode of Pillow."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file
from support.image_corpus import random_image
from support.local_hub import File, LocalHub, Repository
from support.originals import FAMILIES, original_model
from transformers import AutoImageProcessor, CLIPImageProcessor

from hf_clip import HFCLIPImageProcessor, ZeroShotClassifier, load_clip
from hf_clip.openai import load
from hf_clip.openai.convert import Layout, convert
from hf_clip.openai.errors import CheckpointError, DownloadError
from hf_clip.openai.pixels import OPENAI_PIXELS, Pixels, recorded_pixels
from hf_clip.openai.variants import OPEN_CLIP, named_variant
from hf_clip.parity.checks import Verdict
from hf_clip.parity.verify import verify

HALVES = [0.5, 0.5, 0.5]
CONFIGS = {
    "LAION-2B L/14": {"mean": HALVES, "std": HALVES},
    "DFN5B H/14": {"resize_mode": "squash"},
    "all of them": {"mean": HALVES, "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"},
    "bilinear": {"interpolation": "bilinear", "resize_mode": "shortest", "fill_color": 7, "mode": "RGB", "size": 32},
    "one number": {"mean": 0.5, "std": 0.5},
    "OpenAI's": {"mean": list(OPENAI_PIXELS.mean), "std": list(OPENAI_PIXELS.std), "interpolation": "bicubic"},
}
MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"]
SIZES = [(32, 32), (97, 41), (40, 201), (31, 33), (5, 64)]


def write_config(folder, preprocess, **model):
    cfg = {"embed_dim": 64, "vision_cfg": {"width": 64}, "text_cfg": {"heads": 1}, "quick_gelu": True} | model
    content = {"model_cfg": cfg} | ({} if preprocess is None else {"preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """A model in the layout of open_clip."""
    folder = tmp_path / "sister"
    folder.mkdir()
    save_file(original_model(FAMILIES[0]).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def images():
    generator = np.random.default_rng(0)
    for mode in MODES:
        for size in SIZES:
            if mode in ("I", "F", "I;16"):
                values = generator.integers(0, 256, size[::-1]).astype({"I": "i4", "F": "f4", "I;16": "u2"}[mode])
                yield Image.fromarray(values)
            elif mode in ("HSV", "LAB", "YCbCr", "LA"):
                yield Image.frombytes(mode, size, generator.bytes(len(mode[:3]) * size[0] * size[1]))
            else:
                yield random_image(mode, *size, generator)


@pytest.mark.parametrize("preprocess", CONFIGS.values(), ids=CONFIGS)
def test_pixels_are_open_clip_s(preprocess, folder, tmp_path):
    write_config(folder, preprocess)
    convert(folder, tmp_path / "out", report=lambda _: None)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert isinstance(processor, HFCLIPImageProcessor)
    known = {name: preprocess.get(name) for name in ("mean", "std", "interpolation", "resize_mode")}
    theirs = image_transform(32, is_train=False, **known)
    ours, compared = load(str(folder / "open_clip_model.safetensors"), device="cpu")[1], 0
    for image in images():
        try:
            expected = theirs(image)
        except (OSError, ValueError):  # Pillow cannot convert it
            continue
        compared += 1
        assert torch.equal(processor(image, return_tensors="pt").pixel_values[0], expected), (image.mode, image.size)
        assert torch.equal(ours(image), expected), (image.mode, image.size)
    assert compared >= 50


@pytest.mark.parametrize("preprocess", CONFIGS.values(), ids=CONFIGS)
def test_verification_knows_the_pixels(preprocess, folder, tmp_path):
    write_config(folder, preprocess)
    convert(folder, tmp_path / "out", report=lambda _: None)
    source = str(folder / "open_clip_model.safetensors")
    checks = {row.name: row for row in verify(tmp_path / "out", source, report=lambda _: None)}
    assert checks["image processor"].verdict is Verdict.passed, checks["image processor"]
    convert(original_file(tmp_path), tmp_path / "plain", report=lambda _: None)
    checks = {row.name: row for row in verify(tmp_path / "plain", source, report=lambda _: None)}
    is_openai = preprocess == CONFIGS["OpenAI's"]
    assert checks["image processor"].verdict is (Verdict.passed if is_openai else Verdict.failed)


def original_file(folder):
    torch.save(original_model(FAMILIES[0]).state_dict(), folder / "x.pt")
    return folder / "x.pt"


def test_the_stock_layout_has_them_too(folder, tmp_path):
    write_config(folder, CONFIGS["all of them"])
    convert(folder, tmp_path / "out", Layout.transformers, report=lambda _: None)
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "out")
    assert (list(processor.image_mean), list(processor.image_std)) == (HALVES, [0.2, 0.3, 0.4])
    assert (processor.do_center_crop, int(processor.resample)) == (False, 2)
    assert processor(Image.new("RGB", (50, 20)), return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)


def test_assumed_and_recorded_pixels_are_said(folder, tmp_path):
    said = []
    convert(original_file(tmp_path), tmp_path / "out", report=said.append)
    write_config(folder, CONFIGS["DFN5B H/14"])
    convert(folder, tmp_path / "sister-out", report=said.append)
    write_config(folder, None)
    convert(folder, tmp_path / "sister-out", force=True, report=said.append)
    lines = [line for line in said if "assuming activation" in line]
    assert len(lines) == 3
    for line in (lines[0], lines[2]):
        assert "OpenAI's pixels (the short side resized, the rest cropped, bicubic, mean 0.4815, 0.4578" in line
    assert "recorded pixels (both sides resized, bicubic, mean 0.4815" in lines[1]


BAD = {
    "longest": {"resize_mode": "longest"},
    "nearest": {"interpolation": "nearest"},
    "two channels": {"mean": [0.5, 0.5]},
    "no deviation": {"std": [0.5, 0, 0.5]},
    "a word": {"mean": "half"},
    "gray": {"mode": "L"},
    "a list": [1],
}


@pytest.mark.parametrize("preprocess", BAD.values(), ids=BAD)
def test_pixels_that_hf_clip_cannot_make(preprocess, folder):
    write_config(folder, preprocess)
    with pytest.raises(CheckpointError, match="has a preprocess_cfg that hf_clip cannot follow"):
        recorded_pixels(folder / "x.pt")


# --- open_clip's layout -----------------------------------------------------------------------------------------------


def test_a_folder_of_open_clip_loads(folder):
    write_config(folder, CONFIGS["LAION-2B L/14"])
    model, processor = load_clip(folder)
    image, pixels = Image.new("RGB", (50, 40), "red"), Pixels((0.5,) * 3, (0.5,) * 3).transform(32)
    ids = torch.tensor([[49406, 320, 49407]])
    with torch.no_grad():
        ours = model(ids, processor(images=image, return_tensors="pt").pixel_values).logits_per_image
        theirs = original_model(FAMILIES[0])(pixels(image)[None], torch.nn.functional.pad(ids, (0, 74)))[0]
    torch.testing.assert_close(ours, theirs)
    assert ZeroShotClassifier(model, processor, ["a cat", "a dog"])(image)


def test_a_folder_without_weights(tmp_path):
    write_config(tmp_path, None)
    with pytest.raises(CheckpointError, match=r"has open_clip_config\.json and none of open_clip_model"):
        convert(tmp_path, tmp_path / "out", report=lambda _: None)


def test_a_repository_of_open_clip_loads(folder, tmp_path, monkeypatch):
    write_config(folder, CONFIGS["DFN5B H/14"])
    with LocalHub() as hub:
        hub.use_in_process(monkeypatch)
        for name, files in {"org/sister": folder.iterdir(), "org/bare": [folder / "open_clip_config.json"]}.items():
            repository = hub.repositories.setdefault(name, Repository(private=False))
            repository.add("main", "add", {path.name: File.of(path.read_bytes()) for path in files})
        model, processor = load_clip("hf-hub:org/sister")
        assert processor.image_processor.do_center_crop is False
        assert model.config.name_or_path == "hf-hub:org/sister"
        for name, message in {
            "hf-hub:org/bare": "org/bare has none of open_clip_model.safetensors",
            "hf-hub:org/none": "the Hub has no org/none, or it is private",
            "hf-hub:org/sister@no-such-branch": "the Hub has no org/sister@no-such-branch",
            "hf-hub:nonsense/a/b": "cannot fetch nonsense/a/b from the Hub",
        }.items():
            with pytest.raises(DownloadError, match=message) as error:
                convert(name, tmp_path / "out", report=lambda _: None)
            assert "\n" not in str(error.value)


# --- names ------------------------------------------------------------------------------------------------------------


def architectures():
    """Names in open_clip, with configurations, that have published weights and OpenAI's classes."""
    for name in sorted({name for name, _ in open_clip.list_pretrained()}):
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        if not (
            {"timm_model_name", "hf_model_name"} & {*vision, *text} or {"custom_text", "multimodal_cfg"} & {*config}
        ):
            yield name, config


@pytest.mark.parametrize(("name", "config"), list(architectures()))
def test_every_architecture_has_its_settings_or_is_refused(name, config):
    vision, text = config["vision_cfg"], config["text_cfg"]
    if name.removesuffix("-quickgelu") not in OPEN_CLIP:
        with pytest.raises(CheckpointError, match=r"is a MetaCLIP 2, which has XLM-V's|is a CLIPA, which averages"):
            named_variant(name)
        return
    variant = named_variant(name)
    assert variant.activation == ("quick_gelu" if config.get("quick_gelu") else "gelu")
    assert text["heads"] == (variant.text_heads or text["width"] // 64)
    if not isinstance(vision["layers"], list):
        assert vision["width"] // vision.get("head_width", 64) == (variant.vision_heads or vision["width"] // 64)


def test_open_clip_s_list_of_pixels_is_known():
    """Of 61 tags of this architecture that are not OpenAI's, three have other pixels; each can be expressed."""
    others = {}
    for name, tag in open_clip.list_pretrained():
        if name.removesuffix("-quickgelu") in OPEN_CLIP and tag != "openai":
            cfg = get_pretrained_cfg(name, tag)
            pixels = Pixels(tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"], cfg["resize_mode"])
            if pixels.transform(32) and not is_openai(pixels):
                others[name.removesuffix("-quickgelu"), tag] = pixels
    assert others.keys() == {
        ("ViT-L-14", "laion2b_s32b_b82k"),
        ("ViT-H-14", "dfn5b"),
        ("ViT-H-14-378", "dfn5b"),
    }


def is_openai(pixels):
    return pixels.resize_mode == "shortest" and np.allclose(pixels.mean, OPENAI_PIXELS.mean, atol=1e-6)


def sister_table() -> str:
    """Sort open_clip's published tags of models with OpenAI's classes by how hf_clip reads them."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, tag in open_clip.list_pretrained():
        if name.endswith("-quickgelu") or name not in dict(architectures()):
            continue
        cfg = get_pretrained_cfg(name, tag)
        like = f"{name}-quickgelu" if cfg.get("quick_gelu") else name
        if name not in OPEN_CLIP:
            how = f"refused: {dict(REFUSED)[name.rstrip('0123456789').rstrip('-').rpartition('-')[2]]}"
        elif cfg.get("hf_hub"):
            how = "from `hf-hub:`, which records all settings"
        else:
            how = f"from the file with `--like {like}`, its pixels assumed"
        groups.setdefault((name, how), []).append(tag)
    rows = [f"| {name} | {', '.join(tags)} | {how} |" for (name, how), tags in sorted(groups.items())]
    return "\n".join(["| architecture | tags | loads |", "|---|---|---|", *rows])


REFUSED = [
    ("CLIPA", "averages image positions, no causal mask"),
    ("worldwide", "another tokenizer, XLM-V's"),
]


def test_the_docs_list_all_of_open_clip_s_tags():
    page = (Path(__file__).parents[2] / "docs" / "convert.md").read_text(encoding="utf-8")
    assert sister_table() in page, f"put this into docs/convert.md:\n{sister_table()}"
    tags = [tag for line in sister_table().splitlines()[2:] for tag in line.split("|")[2].split(",")]
    assert sum(tag.strip() == "openai" for tag in tags) == 9
    read = [line for line in sister_table().splitlines()[2:] if "refused" not in line]
    assert sum(line.split("|")[2].count(",") + 1 for line in read) == 61 + 9
