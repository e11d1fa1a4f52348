"""What a state dict does not tell: architectures of open_clip, built by its own code, beside ours."""

import json

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from hf_clip import HFCLIPModel
from hf_clip.openai import load, to_hf_model
from hf_clip.openai.convert import convert, load_checkpoint, to_hf
from hf_clip.openai.errors import CheckpointError
from hf_clip.openai.infer_config import infer_config
from hf_clip.openai.variants import OPEN_CLIP, Variant, choose_variant, named_variant
from hf_clip.parity.checks import Verdict
from hf_clip.parity.verify import verify

# as the published ones, smaller: LAION's ViT-B/32 and L/14, its ViT-H/14 with heads 80 wide, DFN and MetaCLIP
VISION = {"layers": 2, "width": 160, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "layers": 2}
MODELS = {
    "gelu": ({"head_width": 32}, {"heads": 4}, False, {"activation": "gelu", "vision_heads": 5, "text_heads": 4}),
    "wide heads": ({"head_width": 80}, {"heads": 2}, False, {"activation": "gelu", "vision_heads": 2}),
    "other mlp": ({"head_width": 80, "mlp_ratio": 4.5}, {"heads": 2}, False, {"activation": "gelu", "vision_heads": 2}),
    "quick_gelu": ({"head_width": 80}, {"heads": 2}, True, {"vision_heads": 2}),
}


def build(vision: dict, text: dict, quick_gelu: bool) -> CLIP:
    torch.manual_seed(0)
    model = CLIP(64, CLIPVisionCfg(**VISION | vision), CLIPTextCfg(**TEXT | text), quick_gelu=quick_gelu).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def write_config(folder, vision: dict, text: dict, quick_gelu: bool) -> None:
    cfg = {"embed_dim": 64, "vision_cfg": VISION | vision, "text_cfg": TEXT | text, "quick_gelu": quick_gelu}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    """open_clip's model, its file, its configuration, and the options that describe it."""
    vision, text, quick_gelu, options = MODELS[request.param]
    model = build(vision, text, quick_gelu)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    return model, tmp_path / "model.pt", (vision, text, quick_gelu), options


@torch.no_grad()
def assert_same_features(ours, theirs) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    ids = torch.randint(1, 1000, (3, 77), generator=generator)
    ids[:, 0], ids[torch.arange(3), torch.tensor([5, 20, 76])] = 49406, 49407
    torch.testing.assert_close(ours.encode_image(pixels), theirs.encode_image(pixels), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.encode_text(ids), theirs.encode_text(ids), rtol=1e-5, atol=1e-6)


def test_options_give_open_clip_s_features(saved, caplog):
    theirs, path, _, options = saved
    assert_same_features(load_checkpoint(path, **options)[0], theirs)
    assert "none of the nine published files: assuming activation" in caplog.text


def test_a_config_beside_the_file_is_read(saved, tmp_path):
    """By conversion, and by the drop-in's `load`, which rounds weights as the original's."""
    theirs, path, config, options = saved
    write_config(path.parent, *config)
    said = []
    convert(path, tmp_path / "converted", report=said.append)
    assert sum("assuming activation" in sentence for sentence in said) == 1
    assert_same_features(HFCLIPModel.from_pretrained(tmp_path / "converted"), theirs)
    loaded = to_hf_model(load(path, device="cpu")[0]).config
    assert loaded.vision_config.hidden_act == options.get("activation", "quick_gelu")
    assert loaded.vision_config.num_attention_heads == options["vision_heads"]


@pytest.mark.parametrize(
    ("tower", "settings"),
    [
        ("vision", {"attentional_pool": True}),
        ("vision", {"pool_type": "avg"}),
        ("vision", {"global_average_pool": True}),
        ("vision", {"timm_model_name": "vit_medium"}),
        ("text", {"no_causal_mask": True}),
        ("text", {"hf_model_name": "roberta-base"}),
        ("text", {"pool_type": "last"}),
    ],
)
def test_what_cannot_be_expressed_is_refused(saved, tower, settings):
    _, path, (vision, text, quick_gelu), _ = saved
    towers = {"vision": vision, "text": text}
    towers[tower] = towers[tower] | settings
    write_config(path.parent, towers["vision"], towers["text"], quick_gelu)
    with pytest.raises(CheckpointError, match=rf"{tower} tower with {next(iter(settings))} .* cannot express"):
        load_checkpoint(path)


def test_a_damaged_config_is_refused(saved):
    _, path, *_ = saved
    path.with_name("open_clip_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not describe a CLIP"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_named_architectures_are_open_clip_s(name):
    config = pytest.importorskip("open_clip").get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    variant = named_variant(name)
    assert variant.activation == ("quick_gelu" if config.get("quick_gelu") else "gelu")
    if isinstance(vision["layers"], int):
        assert (variant.vision_heads or vision["width"] // 64) == vision["width"] // vision.get("head_width", 64)
    assert (variant.text_heads or text["width"] // 64) == text["heads"]
    assert named_variant(f"{name}-quickgelu").activation == "quick_gelu"


@torch.no_grad()
def test_metaclip_2_has_our_towers_and_another_tokenizer(tmp_path):
    """Its texts end at id 2, which old configurations of stock CLIPs hold by mistake."""
    theirs = build({"head_width": 80}, {"heads": 2, "vocab_size": 900, "pool_type": "eos", "eos_id": 2}, True)
    config = infer_config(theirs.state_dict(), Variant(vision_heads=2))
    config.text_config.eos_token_id = 2
    tensors = to_hf(theirs.state_dict(), config)
    HFCLIPModel.from_pretrained(None, config=config, state_dict=tensors).save_pretrained(tmp_path)
    ids = torch.randint(3, 900, (3, 77), generator=torch.Generator().manual_seed(0))
    for row, end in enumerate((5, 20, 76)):
        ids[row, end], ids[row, end + 1 :] = 2, 1  # padded as XLM-V's are
    ours = HFCLIPModel.from_pretrained(tmp_path)
    torch.testing.assert_close(ours.encode_text(ids), theirs.encode_text(ids), rtol=0, atol=1e-6)
    with pytest.raises(
        CheckpointError, match=r"XLM-V's tokenizer: load it with open_clip, or its copy .* facebook/meta"
    ):
        named_variant("ViT-H-14-worldwide")


def test_options_win_over_names_and_files():
    recorded = Variant("gelu", 16, 16)
    assert choose_variant(recorded) == recorded
    assert choose_variant(recorded, like="ViT-bigG-14").text_heads == 20
    assert choose_variant(recorded, like="ViT-bigG-14", text_heads=4).text_heads == 4
    assert choose_variant(None) == Variant("quick_gelu")
    with pytest.raises(CheckpointError, match="no architecture that hf_clip knows"):
        choose_variant(None, like="ViT-Z-1")


def test_heads_that_do_not_fit_are_refused(saved):
    _, path, *_ = saved
    with pytest.raises(CheckpointError, match="160 channels wide cannot have 7 heads"):
        load_checkpoint(path, vision_heads=7)


def test_verify_names_what_the_file_does_not_tell(saved, tmp_path):
    _, path, _, options = saved
    convert(path, tmp_path / "converted", report=lambda _: None, **options)
    checks = {row.name: row for row in verify(tmp_path / "converted", str(path), report=lambda _: None)}
    activation = options.get("activation", "quick_gelu")
    assert checks["config"].verdict is Verdict.passed
    assert f"taken on trust: activation {activation}" in checks["config"].detail
    assert checks["tensors"].verdict is Verdict.passed
