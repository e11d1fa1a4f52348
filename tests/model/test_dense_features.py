"""`get_dense_image_features` beside the original's own modules, and what it has to do with the pooled embedding."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.originals import inputs, load_original, original_model
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_clip import HFCLIPModel
from hf_clip.openai.convert import DType, Layout, to_repository


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def model(repositories, family):
    return HFCLIPModel.from_pretrained(repositories[family]).eval()


@pytest.fixture
def pixels(family):
    return inputs(original_model(family))[0]


def value_weights(attention: nn.MultiheadAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """The last third of the packed input projection."""
    return attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]


def plain_vit(visual: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """From the modules of the original's `VisionTransformer`, (B, HW, D)."""
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(x).transpose(0, 1)  # the original's blocks read (L, B, C)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    x = x + last.attn.out_proj(F.linear(last.ln_1(x), *value_weights(last.attn)))
    x = (x + last.mlp(last.ln_2(x))).transpose(0, 1)
    return visual.ln_post(x[:, 1:]) @ visual.proj


def plain_resnet(visual: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """From the modules of the original's `ModifiedResNet`, (B, HW, D)."""
    maps = []
    hook = visual.attnpool.register_forward_pre_hook(lambda _module, args: maps.append(args[0]))
    visual(pixels)
    hook.remove()
    pool = visual.attnpool
    x = maps[0].flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding[:, None]
    return pool.c_proj(pool.v_proj(x[1:])).transpose(0, 1)


def plain(original: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return (plain_resnet if hasattr(original.visual, "attnpool") else plain_vit)(original.visual, pixels)


def test_equals_a_plain_computation_from_the_original(model, family, archives, pixels):
    expected = plain(load_original(archives[family]), pixels)
    found = model.get_dense_image_features(pixels)
    side = 4 if "ViT" in family else 2
    assert found.shape == (2, 64, side, side)
    assert torch.equal(found.flatten(2).transpose(1, 2), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"])
def test_equals_it_at_full_size(name):
    original = original_model(name)
    repository = to_repository(original.state_dict(), Layout.hf_clip, DType.float32)
    model = HFCLIPModel(repository.config).eval()
    model.load_state_dict(repository.tensors)
    pixels = inputs(original)[0]
    found = model.get_dense_image_features(pixels)
    assert found.shape[2:] == (7, 7)
    assert torch.equal(found.flatten(2).transpose(1, 2), plain(original, pixels))


def test_a_position_is_what_the_model_pools_from_it_alone(model, pixels, family):
    """All heads of the last attention look at one position, which a ViT puts in the place of its class token."""
    dense = model.get_dense_image_features(pixels).flatten(2)
    if "ViT" in family:
        last = model.vision_model.encoder.layers[-1]
        states = model.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    for place in range(dense.shape[2]):

        def look(module, query, key, value, mask, place=place, **kwargs):
            return value[:, :, [1 + place]].transpose(1, 2), None

        if "ViT" in family:
            attention = copy.deepcopy(last)
            swapped = states.clone()
            swapped[:, 0] = states[:, 1 + place]
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "look", look)
                attention.self_attn.config._attn_implementation = "look"
                pooled = model.visual_projection(model.vision_model.post_layernorm(attention(swapped)[:, 0]))
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "look", look)
                patch.setattr(model.vision_model.attention_pool.config, "_attn_implementation_internal", "look")
                pooled = model.encode_image(pixels)
        torch.testing.assert_close(dense[:, :, place], pooled, rtol=0, atol=2e-6)


def test_a_resnet_that_attends_evenly_pools_the_mean_of_the_map(repositories):
    """A ViT's residual and MLP do not commute with the mean."""
    model, pixels = HFCLIPModel.from_pretrained(repositories["tiny ResNet"]).eval(), torch.randn(2, 3, 64, 64)
    pool = model.vision_model.attention_pool
    for tensor in (pool.q_proj.weight, pool.q_proj.bias, pool.position_embedding.weight):
        tensor.zero_()
    pooled, dense = model.encode_image(pixels), model.get_dense_image_features(pixels)
    torch.testing.assert_close(dense.mean((2, 3)), pooled, rtol=0, atol=2e-6)


def test_other_sizes(model, family):
    stride = 8 if "ViT" in family else 32
    wide = torch.randn(1, 3, 3 * stride, 5 * stride)
    assert model.get_dense_image_features(wide, interpolate_pos_encoding=True).shape == (1, 64, 3, 5)
    with pytest.raises(ValueError, match="the model reads"):
        model.get_dense_image_features(wide)


def test_optimized_models_give_the_same_up_to_rounding(model, pixels):
    exact = model.get_dense_image_features(pixels)
    optimized = copy.deepcopy(model).optimize_for_inference().get_dense_image_features(pixels)
    assert (F.normalize(exact, dim=1) - F.normalize(optimized, dim=1)).norm(dim=1).max() < 2e-6


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 4e-3), (torch.bfloat16, 6e-2)])
def test_half_precision_and_autocast(repositories, model, pixels, family, dtype, bound):
    exact = F.normalize(model.get_dense_image_features(pixels), dim=1)
    mixed = HFCLIPModel.from_pretrained(repositories[family], dtype=dtype).eval()
    found = [mixed.get_dense_image_features(pixels)]
    with torch.autocast("cpu", dtype):
        found.append(model.get_dense_image_features(pixels))
    for half in found:
        assert half.dtype == dtype
        assert (F.normalize(half.float(), dim=1) - exact).norm(dim=1).max() < bound


@pytest.mark.slow
def test_torch_compile(model, pixels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own
        compiled = torch.compile(model.get_dense_image_features, backend="aot_eager", fullgraph=True)(pixels)
    torch.testing.assert_close(compiled, model.get_dense_image_features(pixels), rtol=1e-4, atol=1e-5)


def test_embeddings_keep_their_bits(model, pixels):
    """Computing dense features leaves nothing behind."""
    before = model.encode_image(pixels)
    model.get_dense_image_features(pixels)
    assert torch.equal(model.encode_image(pixels), before)
