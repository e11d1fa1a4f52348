"""`optimize_for_inference` on tiny models of both families."""

import copy

import pytest
import torch
from support.originals import inputs, original_model
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
)
from hf_clip.model import inference_hf_clip
from hf_clip.model.inference_hf_clip import HFCLIPPrefixes, folded

# how far embeddings of unit norm may move, by the dtype of the products
BOUNDS = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
EXPECTED = {
    "tiny ViT": {
        "HFCLIPFastMLP": 2 + 2,
        "HFCLIPFastTextModel": 1,
        "HFCLIPFastVisionModel": 1,
        "HFCLIPFastPatchEmbedding": 1,
    },
    "tiny ResNet": {
        "HFCLIPFastMLP": 2,
        "HFCLIPFastTextModel": 1,
        "HFCLIPFastResNetStem": 1,
        "HFCLIPFastResNetStage": 4,
        "HFCLIPFastResNetBottleneck": 5,
        "HFCLIPFastResNetShortcut": 4,
        "HFCLIPFastAttentionPooling": 1,
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


def distance(optimized: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest distance between rows, once they have unit norm."""
    optimized, exact = (nn.functional.normalize(x.flatten(1).double(), dim=-1) for x in (optimized, exact))
    return (optimized - exact).norm(dim=-1).max().item()


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
        optimized = copy.deepcopy(exact).optimize_for_inference()
        assert sum(optimized.optimizations.values()) > 0, model_class
        assert distance(optimized(batch[name])[output], exact(batch[name])[output]) < 1e-6, model_class
        hidden = (m(batch[name], output_hidden_states=True).hidden_states for m in (optimized, exact))
        for ours, theirs in zip(*hidden, strict=True):
            assert distance(ours, theirs) < 1e-6, model_class


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_joint_model_computes_the_same(repositories, family, batch, dtype):
    exact = HFCLIPModel.from_pretrained(repositories[family], dtype=dtype).eval()
    optimized = copy.deepcopy(exact).optimize_for_inference()
    assert optimized.dtype == dtype
    ours, theirs = optimized(**batch), exact(**batch)
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


def test_the_example_of_prefixes():
    """The one in the docstring."""
    a, b, c, d, end = range(5)
    ids = torch.tensor([[a, b, c, end], [a, b, end, 0], [d, end, 0, 0]])
    prefixes = HFCLIPPrefixes.of(ids, torch.tensor([3, 2, 1]))
    assert prefixes.is_first.int().tolist() == [[1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]]
    for row, expected in zip(prefixes.prefix_id.tolist(), ([0, 1, 2, 3], [0, 1, 4], [5, 6]), strict=True):
        assert row[: len(expected)] == expected
    packed = prefixes.pack(ids)
    assert packed.tolist() == [[a, b, c, end, end, d, end]]
    assert torch.equal(prefixes.unpack(packed)[prefixes.is_first], ids[prefixes.is_first])
    assert prefixes.unpack(packed)[1, :3].tolist() == [a, b, end]


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
    """Each position is computed once for all texts with the same tokens up to there, and none after EOT,
    or without one after the highest id."""
    exact = HFCLIPTextModelWithProjection.from_pretrained(repositories["tiny ViT"]).eval()
    optimized = copy.deepcopy(exact).optimize_for_inference()
    ids = random_texts(count, length, end)
    computed = []
    for layer in optimized.text_model.encoder.layers:
        layer.mlp.register_forward_pre_hook(lambda mlp, args: computed.append(args[0].flatten(0, -2).shape[0]))
    embeds = optimized(ids).text_embeds
    texts = {tuple(row[: row.index(max(row)) + 1]) for row in ids.tolist()}  # EOT is the highest id
    assert computed == [len({text[:stop] for text in texts for stop in range(1, len(text) + 1)}), len(texts)]
    assert distance(embeds, exact(ids).text_embeds) < 1e-6


def test_masks_and_positions(repositories):
    """A mask that hides only what follows EOT changes nothing; others, and other positions, count as they do without
    optimization."""
    exact = HFCLIPTextModelWithProjection.from_pretrained(repositories["tiny ViT"]).eval()
    optimized = copy.deepcopy(exact).optimize_for_inference()
    ids = random_texts(20, 9)
    eot = (ids == EOT).int().argmax(-1)
    up_to_eot = (torch.arange(9) <= eot[:, None]).long()
    expected = exact(ids).text_embeds
    plain = optimized(ids).text_embeds
    assert torch.equal(optimized(ids, up_to_eot).text_embeds, plain)
    assert torch.equal(optimized(ids, up_to_eot.bool()).text_embeds, plain)
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
        assert distance(optimized(ids, **option).text_embeds, theirs) < 1e-6, name
    with pytest.raises(ValueError, match="78 tokens long, the model reads at most 77"):
        optimized(random_texts(2, 78))


def test_hidden_states_are_computed_where_they_are_asked_for(model, family, batch):
    exact = model.get_text_features(batch["input_ids"]).last_hidden_state
    optimized = model.optimize_for_inference().get_text_features
    assert optimized(batch["input_ids"]).last_hidden_state is None
    assert distance(optimized(batch["input_ids"], output_hidden_states=True).last_hidden_state, exact) < 1e-6
    assert distance(model.text_model(batch["input_ids"]).last_hidden_state, exact) < 1e-6
    model.config.text_config.output_hidden_states = True
    assert distance(optimized(batch["input_ids"]).last_hidden_state, exact) < 1e-6
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
        monkeypatch.setattr(inference_hf_clip, "CACHE_BYTES", cache_bytes)
        ours = model(**batch)
        for name in ("image_embeds", "text_embeds"):
            assert distance(ours[name], expected[name]) < 1e-6, name
        assert distance(model.get_image_features(**larger).pooler_output, expected_larger) < 1e-6


def test_optimizing_again_changes_nothing(model, family, batch):
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
    assert model.optimize_for_inference().optimizations == {"HFCLIPFastTextModel": 1}
    assert torch.equal(model(ids).pooler_output, expected)


def test_other_image_sizes(model, batch):
    larger = nn.functional.interpolate(batch["pixel_values"], scale_factor=(2, 3))
    expected = model.encode_image(larger, interpolate_pos_encoding=True)
    embeddings = model.optimize_for_inference().encode_image(larger, interpolate_pos_encoding=True)
    assert distance(embeddings, expected) < 1e-6


def test_attentions(repositories, family, batch):
    exact = HFCLIPModel.from_pretrained(repositories[family], attn_implementation="eager").eval()
    optimized = copy.deepcopy(exact).optimize_for_inference()
    outputs = [m.get_image_features(batch["pixel_values"], output_attentions=True) for m in (optimized, exact)]
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
    optimized = copy.deepcopy(exact).optimize_for_inference()
    traced = torch.jit.trace(lambda ids: optimized(ids).text_embeds, random_texts(20, 9)[:1], check_trace=False)
    assert distance(traced(random_texts(40, 9)), exact(random_texts(40, 9)).text_embeds) < 1e-6


@pytest.mark.slow
def test_compiles_without_graph_breaks(model, batch):
    """Traced; what a backend makes of the graph is torch's own."""
    exact = model(**batch)
    outputs = torch.compile(model.optimize_for_inference(), backend="aot_eager", fullgraph=True)(**batch)
    for name in ("image_embeds", "text_embeds"):
        assert distance(outputs[name], exact[name]) < 1e-6


since_2_8 = pytest.mark.skipif(torch.__version__ < (2, 8), reason="older ones refuse the guards that they made")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("tool", [pytest.param("torch.export", marks=since_2_8), "torch.jit.trace"])
def test_a_graph_serves_other_batch_sizes(model, batch, tool):
    """Made with two images and three texts, run with seven and five."""

    class Embeddings(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model.optimize_for_inference()

        def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            outputs = self.model(input_ids, pixel_values)
            return outputs.text_embeds, outputs.image_embeds

    module = Embeddings().eval()
    example = (batch["input_ids"], batch["pixel_values"])
    others = (batch["input_ids"].repeat(2, 1)[:5], torch.randn(7, *batch["pixel_values"].shape[1:]))
    if tool == "torch.export":
        axes = ({0: torch.export.Dim("texts")}, {0: torch.export.Dim("images")})
        graph = torch.export.export(module, example, dynamic_shapes=axes, strict=False).module()
    else:
        graph = torch.jit.trace(module, example, check_trace=False)
    for ours, theirs in zip(graph(*others), module(*others), strict=True):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) < 1e-6


class Wrapper(nn.Module):
    """Pass attributes on, as torch.compile and FSDP do; it has to be called itself."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.calls = module, 0

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("optimized", [False, True])
def test_what_wraps_a_tower_is_called(model, batch, optimized):
    if optimized:
        model.optimize_for_inference()
    expected = model(**batch)
    model.text_model, model.vision_model = Wrapper(model.text_model), Wrapper(model.vision_model)
    outputs = model(**batch)
    assert (model.text_model.calls, model.vision_model.calls) == (1, 1)
    for name in ("image_embeds", "text_embeds"):
        assert distance(outputs[name], expected[name]) < 1e-6
