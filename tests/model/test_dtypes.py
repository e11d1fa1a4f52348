"""Which dtype each way to a model gives: one rule for every class and folder."""

import json
import shutil

import pytest
import torch
from clip.model import LayerNorm
from safetensors.torch import load_file, save_file
from support.originals import inputs, load_original, original_model
from transformers import AutoModel, CLIPTextModel, CLIPVisionModel

from hf_clip import (
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPResNetModel,
    HFCLIPTextModel,
    HFCLIPTextModelWithProjection,
    HFCLIPVisionModel,
    HFCLIPVisionModelWithProjection,
)
from hf_clip.openai.convert import Layout, convert

HALF = [torch.float16, torch.bfloat16]


def classes(family: str) -> list[type]:
    vision = HFCLIPVisionModel if "ViT" in family else HFCLIPResNetModel
    return [
        HFCLIPModel,
        HFCLIPTextModel,
        HFCLIPTextModelWithProjection,
        vision,
        HFCLIPVisionModelWithProjection,
        HFCLIPForImageClassification,
    ]


def dtypes(model: torch.nn.Module) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


@pytest.fixture(params=["mixed", "all fp16", "fp32", "sharded"])
def folder(request, repositories, family, tmp_path):
    """A converted folder that says float32 in its config.json, whatever its tensors are stored in."""
    directory = shutil.copytree(repositories[family], tmp_path / "clip")
    if request.param == "sharded":
        HFCLIPModel.from_pretrained(directory).save_pretrained(directory, max_shard_size="2MB")
        (directory / "model.safetensors").unlink()
    elif request.param != "mixed":
        dtype = torch.float16 if request.param == "all fp16" else torch.float32
        tensors = load_file(directory / "model.safetensors")
        tensors = {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("options", [{}, {"dtype": "auto"}, {"dtype": torch.float32}], ids=["none", "auto", "float32"])
def test_what_the_folder_says_is_float32(folder, family, options):
    for cls in classes(family):
        assert set(dtypes(cls.from_pretrained(folder, **options)).values()) == {torch.float32}, cls


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_keeps_the_same_parts_in_float32(folder, family, dtype):
    """Asked of a class, and without a checkpoint."""
    joint = dtypes(HFCLIPModel.from_pretrained(folder, dtype=dtype))
    assert set(joint.values()) == {dtype, torch.float32}
    for cls in classes(family):
        loaded = cls.from_pretrained(folder, dtype=dtype)
        prefix = f"{loaded.base_model_prefix}." if cls in (HFCLIPTextModel, classes(family)[3]) else ""
        found = dtypes(loaded)
        classifier = {name for name in found if name.startswith("classifier.")}
        assert found == {name: joint[prefix + name] for name in found if name not in classifier} | dict.fromkeys(
            classifier, dtype
        ), cls
        made = cls._from_config(type(loaded.config).from_pretrained(folder), dtype=dtype)
        assert dtypes(made) == found, cls
        kept = cls._keep_in_fp32_modules_strict or []
        assert all(any(part in name for name, _ in made.named_parameters()) or "running" in part for part in kept), cls


def test_auto_model_from_config_keeps_them_too(repositories, family):
    config = HFCLIPModel.from_pretrained(repositories[family]).config
    made = AutoModel.from_config(config, dtype=torch.float16)
    assert made.logit_scale.dtype == torch.float32
    assert dtypes(made) == dtypes(HFCLIPModel.from_pretrained(repositories[family], dtype=torch.float16))


@pytest.mark.parametrize("cls", [HFCLIPModel, HFCLIPTextModel, HFCLIPVisionModelWithProjection])
def test_a_stock_folder_that_says_float16(archives, tmp_path, cls):
    """Joint model and towers follow the same word."""
    convert(str(archives["tiny ViT"]), tmp_path, Layout.transformers, report=lambda _: None)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    assert cls.from_pretrained(tmp_path).dtype == torch.float16


# --- autocast ---------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "fp32": lambda folder: HFCLIPModel.from_pretrained(folder, dtype=torch.float32),
    "fp16 mix": lambda folder: HFCLIPModel.from_pretrained(folder, dtype=torch.float16),
    "bf16 mix": lambda folder: HFCLIPModel.from_pretrained(folder, dtype=torch.bfloat16),
    "all fp16": lambda folder: HFCLIPModel.from_pretrained(folder).half(),
    "all bf16": lambda folder: HFCLIPModel.from_pretrained(folder).bfloat16(),
}


@pytest.mark.parametrize("autocast", [None, *HALF], ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_autocast_over_any_weights(repositories, family, weights, autocast):
    """Evaluation and training; embeddings come in the dtype of autocast, or else of the weights."""
    pixels, ids = inputs(original_model(family), images=2, texts=2)
    exact = HFCLIPModel.from_pretrained(repositories[family])
    model = WEIGHTS[weights](repositories[family])
    computed = autocast or (model.dtype if weights == "fp32" else torch.float16 if "fp16" in weights else HALF[1])
    with torch.autocast("cpu", dtype=autocast or HALF[1], enabled=autocast is not None):
        with torch.no_grad():
            outputs = model(ids, pixels)
            expected = exact(ids, pixels)
        assert outputs.image_embeds.dtype == outputs.text_embeds.dtype == computed
        for name in ("image_embeds", "text_embeds"):
            assert torch.cosine_similarity(outputs[name].float(), expected[name].float()).min() > 0.999
        model.train()(ids, pixels, return_loss=True).loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_float64_computes_in_float64_throughout(family, archives, repositories, monkeypatch):
    """Beside the original in double precision, whose LayerNorm would round to float32 between."""
    monkeypatch.setattr(LayerNorm, "forward", torch.nn.LayerNorm.forward)
    model = HFCLIPModel.from_pretrained(repositories[family], dtype=torch.float64).eval()
    original = load_original(archives[family]).double()
    pixels, ids = inputs(original)
    with torch.no_grad():
        for each in (model, model.double()):
            assert same_doubles(each.encode_image(pixels.double()), original.encode_image(pixels.double()))
            assert same_doubles(each.encode_text(ids), original.encode_text(ids))


def same_doubles(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Compare bits; on a CPU whose product of doubles rounds by the number of its columns, to 1e-13."""
    rows, weight = torch.randn(34, 64, dtype=torch.float64), torch.randn(64, 192, dtype=torch.float64)
    by_columns = not torch.equal((rows @ weight)[:, :64], rows @ weight[:, :64])
    return torch.equal(ours, theirs) or (by_columns and torch.allclose(ours, theirs, rtol=0, atol=1e-13))


@pytest.mark.parametrize("optimized", [False, True])
def test_an_empty_batch_gives_no_embeddings(family, repositories, optimized):
    """As the original's ResNet does; its ViT and its text tower fail."""
    model = HFCLIPModel.from_pretrained(repositories[family]).eval()
    model = model.optimize_for_inference() if optimized else model
    pixels, ids = inputs(original_model(family))
    with torch.no_grad():
        assert model.encode_image(pixels[:0]).shape == model.encode_text(ids[:0]).shape == (0, 64)


@pytest.mark.parametrize("tower", [CLIPTextModel, CLIPVisionModel])
def test_stock_towers_read_the_dtype_of_a_joint_folder(archives, tower, tmp_path):
    """All tensors are float16; the folder says float32, and so does each tower's part of it."""
    convert(str(archives["tiny ViT"]), tmp_path / "stock", Layout.transformers, report=lambda _: None)
    tensors = load_file(tmp_path / "stock" / "model.safetensors")
    halved = {key: t.half() if t.is_floating_point() else t for key, t in tensors.items()}
    save_file(halved, tmp_path / "stock" / "model.safetensors", metadata={"format": "pt"})
    assert set(dtypes(tower.from_pretrained(tmp_path / "stock")).values()) == {torch.float32}
