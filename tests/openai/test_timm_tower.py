"""Image towers that timm and hf_clip read from each other, compared with timm's own models."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.commands import run
from support.originals import FAMILIES, inputs, original_model
from timm.data import create_transform, resolve_data_config
from timm.models.byobnet import ByobNet, model_cfgs

from benchmarks.originals import ARCHITECTURES
from hf_clip import HFCLIPImageProcessor, HFCLIPVisionModelWithProjection, load_clip
from hf_clip.openai.convert import convert
from hf_clip.openai.errors import CheckpointError
from hf_clip.openai.published import CHECKPOINTS, CheckpointLayout
from hf_clip.openai.timm_tower import ARCHITECTURE, HEADS, OPENAI_TAG, RESNETS, VITS, from_timm
from hf_clip.openai.to_openai import to_openai


@pytest.fixture(scope="module")
def timm_folders(repositories, tmp_path_factory):
    """The image tower of each family, in timm's layout."""
    folders = {name: tmp_path_factory.mktemp("timm") / name for name in FAMILIES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNETS, "resnet50_clip", (16, (1, 2, 1, 1), 8, 64))
        for name, folder in folders.items():
            to_openai(repositories[name], folder, CheckpointLayout.timm, report=lambda _: None)
    return folders


def timm_model(folder, family):
    """The tower as timm builds and reads it; a tiny ResNet has no name in timm."""
    if family == "tiny ViT":
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    cfg = model_cfgs["resnet50_clip"]
    blocks = [
        replace(block, d=d, c=64 * 2**i) for i, (block, d) in enumerate(zip(cfg.blocks, (1, 2, 1, 1), strict=True))
    ]
    model = ByobNet(replace(cfg, blocks=tuple(blocks), stem_chs=(8, 8, 16)), num_classes=64, img_size=64)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def test_timm_computes_the_same(timm_folders, repositories, family):
    model = HFCLIPVisionModelWithProjection.from_pretrained(repositories[family]).eval()
    pixels, _ = inputs(original_model(family))
    with torch.no_grad():
        theirs, ours = timm_model(timm_folders[family], family)(pixels), model(pixels).image_embeds
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-6)


def test_a_tower_comes_back_bit_for_bit(timm_folders, repositories, family, tmp_path):
    said = []
    convert(timm_folders[family], tmp_path / "back", report=said.append)
    stored = load_file(tmp_path / "back" / "model.safetensors")
    before = load_file(repositories[family] / "model.safetensors")
    assert stored.keys() == {key for key in before if key.startswith("vis")}
    assert all(torch.equal(tensor, before[key]) and tensor.dtype == before[key].dtype for key, tensor in stored.items())
    pixels, _ = inputs(original_model(family))
    models = [
        HFCLIPVisionModelWithProjection.from_pretrained(path) for path in (tmp_path / "back", repositories[family])
    ]
    with torch.no_grad():
        assert torch.equal(*(model(pixels).image_embeds for model in models))
    side = models[0].config.image_size
    assert HFCLIPImageProcessor.from_pretrained(tmp_path / "back").size["shortest_edge"] == side
    assumed = "assuming activation quick_gelu, pixels" if family == "tiny ViT" else "assuming pixels"
    assert assumed in said[1]


def test_timm_s_transform_resizes_and_crops_as_the_original(timm_folders):
    settings = resolve_data_config(pretrained_cfg=config(timm_folders["tiny ViT"])["pretrained_cfg"])
    transform = create_transform(**settings).transforms
    assert [type(step).__name__ for step in transform] == ["Resize", "CenterCrop", "MaybeToTensor", "Normalize"]
    assert (transform[0].size, transform[0].interpolation.value) == (32, "bicubic")


def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_timm_has_the_nine(name):
    """Under the names, with the sizes, at the addresses that are used here."""
    embed_dim, side, layers, width, patch, *_ = ARCHITECTURES[name]
    if patch is None:
        timm_name = next(key for key, row in RESNETS.items() if row == (width, layers, width * 32 // 64, side))
        cfg = model_cfgs[timm_name]
        assert [(block.d, block.c * cfg.width_factor) for block in cfg.blocks] == [
            (d, width * 4 * 2**i) for i, d in enumerate(layers)
        ]
        assert cfg.stem_chs[-1] * cfg.width_factor == width
    else:
        size = "base" if width == 768 else "large"
        timm_name = f"vit_{size}_patch{patch}_clip_quickgelu_{side}"
    found = timm.get_pretrained_cfg(f"{timm_name}.{OPENAI_TAG}")
    assert (found.input_size[-1], found.num_classes) == (side, embed_dim)
    assert CHECKPOINTS[name].mirror == f"hf-hub:{found.hf_hub_id}"


@pytest.mark.parametrize(
    "name", ["vit_base_patch32_clip_quickgelu_224", *(f"vit_{size}_patch14_clip_224" for size in HEADS)]
)
def test_heads_and_activations_are_timm_s(name):
    found = ARCHITECTURE.fullmatch(name)
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    assert model.blocks[0].attn.num_heads == HEADS.get(found[1], model.embed_dim // 64)
    assert ("Quick" in type(model.blocks[0].mlp.act).__name__) == bool(found[2])


def test_repositories_of_openai_s_weights_name_the_other_activation():
    openai = {name for name in timm.list_pretrained("vit*clip*") if name.endswith(f".{OPENAI_TAG}")}
    repositories = {timm.get_pretrained_cfg(name).hf_hub_id for name in openai if "quickgelu" in name}
    assert repositories == {timm.get_pretrained_cfg(name).hf_hub_id for name in openai}


def altered(folder, target, settings=(), recorded=(), **tensors):
    """Copy a folder of timm with other settings, and further tensors."""
    target.mkdir()
    content = config(folder)
    content |= dict(settings)
    content["pretrained_cfg"] |= dict(recorded)
    (target / "config.json").write_text(json.dumps(content))
    save_file(load_file(folder / "model.safetensors") | tensors, target / "model.safetensors")
    return target


def test_pixels_are_read(timm_folders, tmp_path):
    folder = altered(timm_folders["tiny ViT"], tmp_path / "x", recorded={"crop_pct": 0.9, "interpolation": "bilinear"})
    processor = from_timm(folder).processor
    assert (processor.size["shortest_edge"], processor.crop_size["height"], int(processor.resample)) == (35, 32, 2)
    folder = altered(timm_folders["tiny ViT"], tmp_path / "y", recorded={"crop_mode": "squash"})
    assert not from_timm(folder).processor.do_center_crop
    # the published towers name the architecture with the other activation, and timm's own crop
    recorded = {"crop_pct": 0.9, "tag": "openai"}
    folder = altered(timm_folders["tiny ViT"], tmp_path / "z", {"architecture": VITS["gelu"]}, recorded)
    tower = from_timm(folder)
    assert (tower.config.hidden_act, tower.processor.size["shortest_edge"]) == ("quick_gelu", 32)


BAD = {
    "another model": ({"settings": {"architecture": "resnet50"}}, "timm's resnet50, which is no image tower of a CLIP"),
    "mean pooling": ({"settings": {"architecture": "resnet50_clip_gap"}}, "resnet50_clip_gap, which is no image tower"),
    "a classifier": ({"head.bias": torch.ones(64)}, "a head with a bias, so it is a classifier's"),
    "another tensor": ({"fc_norm.weight": torch.ones(64)}, "0 rules match 'fc_norm.weight'"),
    "another family": ({"settings": {"architecture": "resnet50_clip"}}, "0 rules match 'blocks"),
    "a border": ({"recorded": {"crop_mode": "border"}}, "crop_mode is 'border'"),
    "an interpolation": ({"recorded": {"interpolation": "random"}}, "interpolation is 'random'"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_what_is_no_tower_of_a_clip_is_named(change, message, timm_folders, tmp_path):
    folder = altered(timm_folders["tiny ViT"], tmp_path / "x", **change)
    with pytest.raises(CheckpointError, match=message) as error:
        convert(folder, tmp_path / "out", report=lambda _: None)
    assert str(error.value).count(str(folder)) == 1
    assert not (tmp_path / "out").exists()


def test_options_of_whole_models_do_not_apply(timm_folders, tmp_path, capsys):
    assert run("convert", timm_folders["tiny ViT"], "--output", tmp_path / "x", "--layout", "transformers") == 1
    assert "an image tower of timm, to which --layout does not apply" in capsys.readouterr().err


def test_load_clip_names_the_way(timm_folders):
    with pytest.raises(CheckpointError, match="is an image tower of timm: convert it first"):
        load_clip(timm_folders["tiny ViT"])


def test_towers_that_timm_does_not_have(repositories, tmp_path, capsys):
    output = tmp_path / "x"
    assert run("to-openai", repositories["tiny ResNet"], "--output", output, "--layout", "timm") == 1
    assert "timm has CLIP ResNets of five sizes" in capsys.readouterr().err
    assert not output.exists()
