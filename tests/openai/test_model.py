"""The modules beside the original's: names, numbers that training starts from, outputs, gradients, training steps."""

import copy
from collections.abc import Callable

import clip.model as theirs
import pytest
import torch
from support.originals import ARCHITECTURES, TEXT, inputs, original_model
from torch import nn

import hf_clip.openai as ours
from hf_clip import HFCLIPModel
from hf_clip.openai import model as mine
from hf_clip.openai.errors import CheckpointError
from hf_clip.openai.model import build_variant
from hf_clip.openai.variants import Variant


def build(module, name: str, seed: int = 0) -> nn.Module:
    """An architecture as a module's own constructor initializes it."""
    embed_dim, resolution, layers, width, patch, *text = ARCHITECTURES[name]
    torch.manual_seed(seed)
    return module.CLIP(embed_dim, resolution, layers, width, patch, *TEXT.values(), *text)


def twins(name: str) -> tuple[nn.Module, nn.Module]:
    """The original's model with random biases and statistics, and ours of the same tensors, in float32."""
    right = original_model(name)
    model = build(mine, name, seed=1)
    model.load_state_dict(right.state_dict())
    return right, model.eval()


def assert_equal(right: dict | tuple | list, got: dict | tuple | list) -> None:
    """Names, order, dtypes and bits."""
    if isinstance(right, dict):
        assert list(right) == list(got)
        right, got = right.values(), got.values()
    for expected, tensor in zip(right, got, strict=True):
        if expected is None:
            assert tensor is None
        else:
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# --- construction -----------------------------------------------------------------------------------------------------

CONSTRUCTORS: dict[str, Callable] = {
    "Bottleneck": lambda m: m.Bottleneck(8, 4),
    "Bottleneck, stride": lambda m: m.Bottleneck(inplanes=16, planes=4, stride=2),
    "Bottleneck, same width": lambda m: m.Bottleneck(16, 4),
    "AttentionPool2d": lambda m: m.AttentionPool2d(spacial_dim=2, embed_dim=8, num_heads=2),
    "AttentionPool2d, output_dim": lambda m: m.AttentionPool2d(2, 8, 2, output_dim=4),
    "ModifiedResNet": lambda m: m.ModifiedResNet(
        layers=[1, 2, 1, 1], output_dim=8, heads=4, input_resolution=64, width=8
    ),
    "LayerNorm": lambda m: m.LayerNorm(8),
    "LayerNorm, plain": lambda m: m.LayerNorm([2, 4], eps=1e-6, elementwise_affine=False),
    "QuickGELU": lambda m: m.QuickGELU(),
    "ResidualAttentionBlock": lambda m: m.ResidualAttentionBlock(d_model=8, n_head=2),
    "Transformer": lambda m: m.Transformer(width=8, layers=2, heads=2, attn_mask=torch.zeros(4, 4)),
    "VisionTransformer": lambda m: m.VisionTransformer(
        input_resolution=16, patch_size=8, width=64, layers=1, heads=2, output_dim=8
    ),
    "CLIP, ViT": lambda m: m.CLIP(
        embed_dim=8,
        image_resolution=16,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=8,
        context_length=7,
        vocab_size=11,
        transformer_width=8,
        transformer_heads=2,
        transformer_layers=2,
    ),
    "CLIP, ResNet": lambda m: m.CLIP(8, 64, [1, 1, 1, 1], 16, None, 7, 11, 8, 2, 2),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors(name):
    """Same names, order, attributes and text of `print`; a seed draws the same numbers."""
    built = []
    for module in (theirs, mine):
        torch.manual_seed(0)
        built.append(CONSTRUCTORS[name](module))
    right, got = built
    assert_equal(right.state_dict(), got.state_dict())
    assert [n for n, _ in right.named_parameters()] == [n for n, _ in got.named_parameters()]
    assert [n for n, _ in right.named_modules()] == [n for n, _ in got.named_modules()]
    assert repr(right) == repr(got)
    for a, b in zip(right.modules(), got.modules(), strict=True):
        assert vars(a).keys() == vars(b).keys()


@pytest.mark.parametrize("family", ["tiny ViT", "tiny ResNet"])
def test_the_mask(family):
    right, got = twins(family)
    assert torch.equal(right.build_attention_mask(), got.build_attention_mask())
    masks = [block.attn_mask for block in got.transformer.resblocks]
    assert all(mask is masks[0] for mask in masks)
    assert torch.equal(masks[0], right.transformer.resblocks[0].attn_mask)
    if family == "tiny ViT":
        assert got.visual.transformer.resblocks[0].attn_mask is None


# --- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [False, True], ids=["fp32", "fp16 mix"])
@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
def test_outputs_and_gradients(family, mode, mix):
    pair = twins(family)
    images, texts = inputs(pair[0])
    results = []
    for model, module in zip(pair, (theirs, mine), strict=True):
        if mix:
            module.convert_weights(model)
        model.train(mode)
        output = model(images, texts)
        sum(logits.float().square().mean() for logits in output).backward()
        results.append((output, gradients(model), model.state_dict()))
    for right, got in zip(*results, strict=True):
        assert_equal(right, got)
    assert mode is False or pair[1].training


@pytest.mark.parametrize("mix", [False, True], ids=["fp32", "fp16 mix"])
def test_three_training_steps(family, mix):
    """Parameters, gradients and BatchNorm statistics after three steps of SGD with momentum."""
    pair = twins(family)
    results = []
    for model, module in zip(pair, (theirs, mine), strict=True):
        if mix:
            module.convert_weights(model)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.01)
        losses = []
        for step in range(3):
            images, texts = inputs(model, images=3, seed=step)
            logits = model(images, texts)
            target = torch.arange(3)
            loss = sum(nn.functional.cross_entropy(each.float(), target) for each in logits) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        results.append((losses, gradients(model), model.state_dict()))
    for right, got in zip(*results, strict=True):
        assert_equal(right, got)
    start = original_model(family).state_dict()
    moved = results[1][2]
    assert not torch.equal(moved["text_projection"].float(), start["text_projection"])
    if family == "tiny ResNet":
        assert moved["visual.bn1.num_batches_tracked"] == start["visual.bn1.num_batches_tracked"] + 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"])
def test_a_full_size_training_step(name):
    results = []
    for model in twins(name):
        model.train()
        images, texts = inputs(model, images=2, texts=2)
        logits, _ = model(images, texts)
        nn.functional.cross_entropy(logits, torch.arange(2)).backward()
        results.append((gradients(model), dict(model.named_buffers())))
    for right, got in zip(*results, strict=True):
        assert_equal(right, got)


def test_half_and_double_models(family):
    """The original cannot compute in them: its norms take float32 only."""
    right, got = twins(family)
    images, texts = inputs(right)
    expected = right.encode_image(images), right.encode_text(texts)
    for dtype, tolerance in ((torch.float16, 0.02), (torch.float64, 1e-5)):
        model = copy.deepcopy(got).to(dtype)
        for output, near in zip((model.encode_image(images), model.encode_text(texts)), expected, strict=True):
            assert output.dtype == dtype
            torch.testing.assert_close(output.to(near), near, rtol=tolerance, atol=tolerance)


# --- building ---------------------------------------------------------------------------------------------------------


def test_build_model_copies(family):
    """No parameter shares memory with the state dict, as in the original."""
    state_dict = mine.convert_weights(model := build(mine, family)) or model.state_dict()
    before = {key: tensor.clone() for key, tensor in state_dict.items()}
    built = mine.build_model(state_dict)
    assert not built.training
    with torch.no_grad():
        for tensor in built.state_dict().values():
            tensor.add_(1)
    assert_equal(before, state_dict)
    assert all(tensor.is_contiguous() for tensor in built.state_dict().values())
    assert all(parameter.requires_grad for parameter in built.parameters())


def test_build_model_without_counts(family):
    """Some tools leave out `num_batches_tracked`; the original takes such state dicts too."""
    state_dict = dict(original_model(family).state_dict())
    state_dict = {key: tensor for key, tensor in state_dict.items() if not key.endswith("num_batches_tracked")}
    assert_equal(theirs.build_model(dict(state_dict)).state_dict(), mine.build_model(state_dict).state_dict())


def test_build_model_refuses_what_is_no_clip(family):
    state_dict = dict(original_model(family).state_dict())
    with pytest.raises(CheckpointError, match=r"unknown extra$"):
        mine.build_model(state_dict | {"extra": torch.zeros(1)})
    del state_dict["ln_final.bias"]
    with pytest.raises(CheckpointError, match=r"missing ln_final\.bias$"):
        mine.build_model(state_dict)


def test_to_hf_model_and_back(family):
    model = mine.build_model(original_model(family).state_dict())
    hf_model = ours.to_hf_model(model)
    assert type(hf_model) is HFCLIPModel
    assert not hf_model.training
    images, texts = inputs(model)
    model.float()
    hf_model.float()
    with torch.no_grad():
        assert torch.equal(hf_model.encode_image(images), model.encode_image(images))
        assert torch.equal(hf_model.encode_text(texts), model.encode_text(texts))
    back = ours.from_hf_model(hf_model)
    assert_equal(model.state_dict(), back.state_dict())
    assert not back.training
    ours_ = {tensor.untyped_storage().data_ptr() for tensor in hf_model.state_dict().values()}
    assert not ours_ & {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert not ours_ & {tensor.untyped_storage().data_ptr() for tensor in back.state_dict().values()}


def test_to_hf_model_of_a_changed_model(family):
    _, model = twins(family)
    model.head = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"unknown head\.bias, head\.weight"):
        ours.to_hf_model(model)
    del model.head
    del model.transformer.resblocks[1]
    assert ours.to_hf_model(model).config.text_config.num_hidden_layers == 1
    model.transformer.resblocks[0].mlp.gelu = nn.ReLU()
    assert ours.to_hf_model(model).config.text_config.hidden_act == "relu"
    model.transformer.resblocks[0].mlp.gelu = nn.Sequential()
    with pytest.raises(CheckpointError, match=r"has no activation Sequential: take one of"):
        ours.to_hf_model(model)


@pytest.mark.parametrize("variant", [Variant("gelu"), Variant("gelu", vision_heads=2, text_heads=4)])
def test_variants(family, variant):
    """Activation and heads survive the ways to HFCLIPModel and back."""
    model = build_variant(original_model(family).state_dict(), variant, dtype=torch.float32)
    images, texts = inputs(model)
    hf_model = ours.to_hf_model(model)
    config = hf_model.config
    assert config.text_config.hidden_act == "gelu"
    assert config.text_config.num_attention_heads == (variant.text_heads or 1)
    back = ours.from_hf_model(hf_model)
    plain = mine.build_model(model.state_dict()).float()
    with torch.no_grad():
        assert torch.equal(hf_model.encode_text(texts), model.encode_text(texts))
        assert torch.equal(hf_model.encode_image(images), model.encode_image(images))
        assert torch.equal(back.encode_image(images), model.encode_image(images))
        assert not torch.equal(plain.encode_text(texts), model.encode_text(texts))
