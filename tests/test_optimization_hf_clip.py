"""`optimize_for_inference` on tiny models of both families."""

import copy

import pytest
import torch
from helpers import inputs, original_model
from torch import nn

from hf_clip import (
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPResNetModel,
    HFCLIPTextConfig,
    HFCLIPTextModel,
    HFCLIPTextModelWithProjection,
    HFCLIPVisionModel,
    HFCLIPVisionModelWithProjection,
    optimization_hf_clip,
)
from hf_clip.optimization_hf_clip import folded

# how far embeddings of unit norm may move, by the dtype of the products
BOUNDS = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
EXPECTED = {
    "tiny ViT": {"HFCLIPFusedMLP": 2 + 2, "HFCLIPFusedEncoder": 2, "HFCLIPFusedPatchEmbedding": 1},
    "tiny ResNet": {
        "HFCLIPFusedMLP": 2,
        "HFCLIPFusedEncoder": 1,
        "HFCLIPFusedResNetStem": 1,
        "HFCLIPFusedResNetStage": 4,
        "HFCLIPFusedAttentionPooling": 1,
    },
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def batch(family):
    pixel_values, input_ids = inputs(original_model(family))
    return {"input_ids": input_ids, "pixel_values": pixel_values}


@pytest.fixture
def model(repositories, family):
    return HFCLIPModel.from_pretrained(repositories[family]).eval()


def distance(optimised: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest distance between rows, once they have unit norm."""
    optimised, exact = (nn.functional.normalize(x.flatten(1).double(), dim=-1) for x in (optimised, exact))
    return (optimised - exact).norm(dim=-1).max().item()


def classes(family):
    tower = HFCLIPVisionModel if "ViT" in family else HFCLIPResNetModel
    return {
        tower: ("pixel_values", "pooler_output"),
        HFCLIPVisionModelWithProjection: ("pixel_values", "image_embeds"),
        HFCLIPForImageClassification: ("pixel_values", "logits"),
        HFCLIPTextModel: ("input_ids", "pooler_output"),
        HFCLIPTextModelWithProjection: ("input_ids", "text_embeds"),
    }


def test_every_class_computes_the_same(repositories, family, batch):
    for model_class, (name, output) in classes(family).items():
        exact = model_class.from_pretrained(repositories[family]).eval()
        optimised = copy.deepcopy(exact).optimize_for_inference()
        assert sum(optimised.optimizations.values()) > 0, model_class
        assert distance(optimised(batch[name])[output], exact(batch[name])[output]) < 1e-6, model_class
        hidden = (m(batch[name], output_hidden_states=True).hidden_states for m in (optimised, exact))
        for ours, theirs in zip(*hidden, strict=True):
            assert distance(ours, theirs) < 1e-6, model_class


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_joint_model_computes_the_same(repositories, family, batch, dtype):
    exact = HFCLIPModel.from_pretrained(repositories[family], dtype=dtype).eval()
    optimised = copy.deepcopy(exact).optimize_for_inference()
    assert optimised.dtype == dtype
    ours, theirs = optimised(**batch), exact(**batch)
    for name in ("image_embeds", "text_embeds"):
        assert ours[name].dtype == dtype
        assert distance(ours[name], theirs[name]) < BOUNDS[dtype], name
    assert not torch.equal(ours.image_embeds, theirs.image_embeds)


def test_what_has_changed(model, family):
    assert model.optimizations == {}
    assert model.optimize_for_inference() is model
    assert model.optimizations == EXPECTED[family]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    modules = list(model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in modules)
    if "ResNet" in family:
        convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
        assert len(convolutions) == 3 + 3 * 5 + 4
        for convolution in convolutions:
            assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


EOT = 49407


def random_texts(count: int, length: int, end: bool = True) -> torch.Tensor:
    """Token ids (count, length) that often begin alike, with EOT anywhere and then anything."""
    ids = torch.randint(0, 3, (count, length), generator=torch.Generator().manual_seed(count))
    if end:
        ids[torch.arange(count), torch.arange(count) % length] = EOT
    return ids


@pytest.mark.parametrize(
    ("count", "length", "end"), [(1, 1, True), (1, 77, True), (40, 5, True), (40, 77, True), (3, 9, False)]
)
def test_texts_that_begin_alike(repositories, count, length, end):
    """Each position is computed once for all texts with the same tokens up to there, and none after EOT."""
    exact = HFCLIPTextModelWithProjection.from_pretrained(repositories["tiny ViT"]).eval()
    optimised = copy.deepcopy(exact).optimize_for_inference()
    ids = random_texts(count, length, end)
    computed = []
    for layer in optimised.text_model.encoder.layers:
        layer.mlp.register_forward_pre_hook(lambda mlp, args: computed.append(args[0].flatten(0, -2).shape[0]))
    embeds = optimised(ids).text_embeds
    texts = {tuple(row[: row.index(EOT) + 1] if end else row[:1]) for row in ids.tolist()}
    assert computed == [len({text[:stop] for text in texts for stop in range(1, len(text) + 1)}), len(texts)]
    assert distance(embeds, exact(ids).text_embeds) < 1e-6


def test_masks_and_positions(repositories):
    """A mask that hides only what follows EOT changes nothing; others, and other positions, count as they do without
    optimisation."""
    exact = HFCLIPTextModelWithProjection.from_pretrained(repositories["tiny ViT"]).eval()
    optimised = copy.deepcopy(exact).optimize_for_inference()
    ids = random_texts(20, 9)
    eot = (ids == EOT).int().argmax(-1)
    up_to_eot = (torch.arange(9) <= eot[:, None]).long()
    expected = exact(ids).text_embeds
    plain = optimised(ids).text_embeds
    assert torch.equal(optimised(ids, up_to_eot).text_embeds, plain)
    assert torch.equal(optimised(ids, up_to_eot.bool()).text_embeds, plain)
    left = up_to_eot.clone()
    left[:, 0] = eot == 0
    causal = torch.ones(9, 9, dtype=torch.bool).tril() & (torch.arange(9) != 2) | torch.eye(9, dtype=torch.bool)
    options = {
        "left": {"attention_mask": left},
        "of every pair": {"attention_mask": causal.expand(20, 1, 9, 9)},
        "positions": {"position_ids": torch.arange(9).flip(0)},
    }
    for name, option in options.items():
        theirs = exact(ids, **option).text_embeds
        assert distance(theirs, expected) > 1e-3, name
        assert distance(optimised(ids, **option).text_embeds, theirs) < 1e-6, name
    with pytest.raises(ValueError, match="78 tokens long, the model reads at most 77"):
        optimised(random_texts(2, 78))


def test_hidden_states_are_computed_where_they_are_asked_for(model, family, batch):
    exact = model.get_text_features(batch["input_ids"]).last_hidden_state
    optimised = model.optimize_for_inference().get_text_features
    assert optimised(batch["input_ids"]).last_hidden_state is None
    assert distance(optimised(batch["input_ids"], output_hidden_states=True).last_hidden_state, exact) < 1e-6
    assert distance(model.text_model(batch["input_ids"]).last_hidden_state, exact) < 1e-6
    model.config.text_config.output_hidden_states = True
    assert distance(optimised(batch["input_ids"]).last_hidden_state, exact) < 1e-6
    images = model.get_image_features(batch["pixel_values"])
    assert (images.last_hidden_state is None) == ("ViT" in family)


def test_folding_rounds_once():
    """Also where a whole model, BatchNorms and all, was cast."""
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(8, 64, 3, bias=False).bfloat16().eval(), nn.BatchNorm2d(64).bfloat16().eval()
    for tensor in (bn.weight, bn.running_var):
        tensor.uniform_(0.5, 1.5)
    scale = bn.weight.float() * torch.rsqrt(bn.running_var.float() + bn.eps)
    expected = (conv.weight.float() * scale[:, None, None, None]).bfloat16()
    assert torch.equal(folded(conv, bn).weight, expected)


def test_parts_that_fit_the_cache_give_the_same(model, family, batch, monkeypatch):
    """Also where they do not divide the batch, of two images and three texts, and images are larger."""
    side = model.config.vision_config.image_size * 3 // 2
    larger = {"pixel_values": torch.randn(2, 3, side, side), "interpolate_pos_encoding": True}
    model.optimize_for_inference()
    expected, expected_larger = model(**batch), model.get_image_features(**larger).pooler_output
    for cache_bytes in (1, 100_000):
        monkeypatch.setattr(optimization_hf_clip, "CACHE_BYTES", cache_bytes)
        ours = model(**batch)
        for name in ("image_embeds", "text_embeds"):
            assert distance(ours[name], expected[name]) < 1e-6, name
        assert distance(model.get_image_features(**larger).pooler_output, expected_larger) < 1e-6


def test_optimising_again_changes_nothing(model, family, batch):
    expected = model.optimize_for_inference()(**batch).logits_per_image
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.optimize_for_inference().optimizations == EXPECTED[family]
    assert model.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(**batch).logits_per_image, expected)


def test_refusals(model, tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            model.optimize_for_inference()
        assert not model.optimizations

    model.vision_model.train()
    refused(r"call model\.eval\(\) first")
    model.eval()
    layer = model.text_model.encoder.layers[0].mlp
    layer.fc1.base_layer = nn.Linear(1, 1).eval()
    refused("merge adapters first")
    del layer.fc1.base_layer
    layer._hf_hook = None
    refused("without a device_map")
    del layer._hf_hook
    model.text_model.optimize_for_inference()  # a part is enough
    with pytest.raises(ValueError, match="call save_pretrained before optimize_for_inference"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_loaded_tensors_stay_as_they_were(model):
    """A second model may share them, or the file they are mapped from."""
    tensors = model.state_dict()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    model.optimize_for_inference()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


def test_other_activations_are_left_alone():
    config = HFCLIPTextConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, hidden_act="gelu")
    model = HFCLIPTextModel(config).eval()
    ids = torch.tensor([[1, 2, 49407]])
    expected = model(ids).pooler_output
    assert model.optimize_for_inference().optimizations == {"HFCLIPFusedEncoder": 1}
    assert torch.equal(model(ids).pooler_output, expected)


def test_other_image_sizes(model, batch):
    larger = nn.functional.interpolate(batch["pixel_values"], scale_factor=(2, 3))
    expected = model.encode_image(larger, interpolate_pos_encoding=True)
    embeddings = model.optimize_for_inference().encode_image(larger, interpolate_pos_encoding=True)
    assert distance(embeddings, expected) < 1e-6


def test_attentions(repositories, family, batch):
    exact = HFCLIPModel.from_pretrained(repositories[family], attn_implementation="eager").eval()
    optimised = copy.deepcopy(exact).optimize_for_inference()
    outputs = [m.get_image_features(batch["pixel_values"], output_attentions=True) for m in (optimised, exact)]
    for ours, theirs in zip(*(output.attentions for output in outputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_gradients_reach_the_pixels(model, batch):
    """No oneDNN kernel where a gradient is wanted."""
    gradients = []
    for m in (model, copy.deepcopy(model).optimize_for_inference()):
        pixels = batch["pixel_values"].clone().requires_grad_()
        with torch.enable_grad():
            m.encode_image(pixels)[:, 0].sum().backward()
        gradients.append(pixels.grad)
    assert distance(*gradients) < 1e-5


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:FutureWarning")
def test_a_trace_serves_other_inputs(repositories, family):
    exact = HFCLIPTextModelWithProjection.from_pretrained(repositories[family]).eval()
    optimised = copy.deepcopy(exact).optimize_for_inference()
    traced = torch.jit.trace(lambda ids: optimised(ids).text_embeds, random_texts(20, 9)[:1], check_trace=False)
    assert distance(traced(random_texts(40, 9)), exact(random_texts(40, 9)).text_embeds) < 1e-6


@pytest.mark.slow
def test_compiles_without_graph_breaks(model, batch):
    """Traced; what a backend makes of the graph is torch's own."""
    exact = model(**batch)
    outputs = torch.compile(model.optimize_for_inference(), backend="aot_eager", fullgraph=True)(**batch)
    for name in ("image_embeds", "text_embeds"):
        assert distance(outputs[name], exact[name]) < 1e-6
