"""The drop-in beside the original: each case is run with both modules."""

import copy
import inspect
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import clip
import numpy as np
import pytest
import torch
from clip.model import build_model, convert_weights
from huggingface_hub import HfApi
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from support.local_hub import LocalHub
from support.originals import inputs as random_inputs
from support.originals import load_original, original_model, save_archive
from torch.utils.data import DataLoader

import hf_clip.openai as ours
from hf_clip.openai.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def loaded(archives):
    return {name: (load_original(path), ours.load(path, "cpu")[0]) for name, path in archives.items()}


@pytest.fixture
def pair(family, loaded):
    """The original's model and ours, of one file, for the test to change."""
    return copy.deepcopy(loaded[family])


@pytest.fixture
def batch(pair):
    return random_inputs(pair[0])


@pytest.fixture(params=["tiny ViT", "tiny ResNet", pytest.param("ViT-B/32", marks=pytest.mark.slow)], scope="module")
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("examples") / "model.pt"
    yield str(save_archive(original_model(request.param), path, half_graph=False))
    path.unlink()


def picture(seed: int, size: tuple[int, int] = (90, 70), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


# --- the examples of the original's README ----------------------------------------------------------------------------


def usage(clip, name):
    device = "cpu"
    model, preprocess = clip.load(name, device=device)

    image = preprocess(picture(0)).unsqueeze(0).to(device)
    text = clip.tokenize(["a diagram", "a dog", "a cat"]).to(device)

    with torch.no_grad():
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)

        logits_per_image, logits_per_text = model(image, text)
        probs = logits_per_image.softmax(dim=-1).cpu().numpy()
    return image_features, text_features, logits_per_text, torch.from_numpy(probs)


def zero_shot(clip, name):
    """The CIFAR-100 example on generated images."""
    model, preprocess = clip.load(name, "cpu")
    classes = ["apple", "aquarium_fish", "baby", "bear", "beaver", "bed"]
    found = []
    for seed in range(3):
        image_input = preprocess(picture(seed, (32, 32))).unsqueeze(0)
        text_inputs = torch.cat([clip.tokenize(f"a photo of a {c}") for c in classes])
        with torch.no_grad():
            image_features = model.encode_image(image_input)
            text_features = model.encode_text(text_inputs)
        image_features /= image_features.norm(dim=-1, keepdim=True)
        text_features /= text_features.norm(dim=-1, keepdim=True)
        similarity = (100.0 * image_features @ text_features.T).softmax(dim=-1)
        found += similarity[0].topk(5)
    return found


def linear_probe(clip, name):
    model, preprocess = clip.load(name, "cpu")
    digits = load_digits()
    dataset = [
        (preprocess(Image.fromarray((16 * image).astype(np.uint8))), label)
        for image, label in zip(digits.images[:60], digits.target[:60], strict=True)
    ]

    def get_features(dataset):
        all_features = []
        all_labels = []
        with torch.no_grad():
            for images, labels in DataLoader(dataset, batch_size=20):
                all_features.append(model.encode_image(images))
                all_labels.append(labels)
        return torch.cat(all_features).cpu().numpy(), torch.cat(all_labels).cpu().numpy()

    train_features, train_labels = get_features(dataset[:40])
    test_features, _ = get_features(dataset[40:])
    classifier = LogisticRegression(random_state=0, C=0.316, max_iter=100)
    classifier.fit(train_features, train_labels)
    return [torch.from_numpy(x) for x in (train_features, test_features, classifier.predict(test_features))]


@pytest.mark.parametrize("example", [usage, zero_shot, linear_probe])
def test_examples_of_the_readme(example, checkpoint):
    for expected, got in zip(example(clip, checkpoint), example(ours, checkpoint), strict=True):
        assert torch.equal(got, expected)


# --- every public name ------------------------------------------------------------------------------------------------


def parameters(function):
    return inspect.signature(function).parameters


MODULE = {
    "available_models": lambda clip: clip.available_models(),
    "load": lambda clip: [p for p in parameters(clip.load) if p != "optimize"],
    "defaults of load": lambda clip: [p.default for n, p in parameters(clip.load).items() if n != "optimize"],
    "defaults of tokenize": lambda clip: [p.default for p in inspect.signature(clip.tokenize).parameters.values()],
    "tokenize a str": lambda clip: clip.tokenize("Hello,  WORLD!"),
    "tokenize a list": lambda clip: clip.tokenize(["a", "", "d&eacute;j\u00e0 vu \U0001f600"]),
    "tokenize a tuple": lambda clip: clip.tokenize(("a", "b")),
    "tokenize nothing": lambda clip: clip.tokenize([]),
    "tokenize, narrowest": lambda clip: clip.tokenize(["a b", ""], context_length=1, truncate=True),
    "tokenize, narrow": lambda clip: clip.tokenize("a b c d e f", context_length=5, truncate=True),
    "tokenize, wide": lambda clip: clip.tokenize("word " * 90, context_length=100),
    "tokenize, truncate": lambda clip: clip.tokenize(["word " * 90, "one"], truncate=True),
}


@pytest.mark.parametrize("name", MODULE)
def test_module(name):
    expected, got = MODULE[name](clip), MODULE[name](ours)
    if isinstance(expected, torch.Tensor):
        assert got.dtype == torch.int32
        assert torch.equal(got, expected.int())
    else:
        assert got == expected


MODEL = {
    "encode_image": lambda model, images, ids: model.encode_image(images),
    "encode_text": lambda model, images, ids: model.encode_text(ids),
    "encode_text, int32": lambda model, images, ids: model.encode_text(ids.int()),
    "encode_text, full": lambda model, images, ids: model.encode_text(clip.tokenize("word " * 90, truncate=True)),
    "encode_text, no EOT": lambda model, images, ids: model.encode_text(ids.clamp(max=49000)),
    "encode_text, narrow": lambda model, images, ids: model.encode_text(ids[:, :16]),
    "logits_per_image": lambda model, images, ids: model(images, ids)[0],
    "logits_per_text": lambda model, images, ids: model(images, ids)[1],
    "dtype": lambda model, images, ids: model.dtype,
    "context_length": lambda model, images, ids: model.context_length,
    "vocab_size": lambda model, images, ids: model.vocab_size,
    "training": lambda model, images, ids: (model.training, model.train().training, model.eval().training),
    "float": lambda model, images, ids: model.float().encode_image(images),
    "to": lambda model, images, ids: model.to("cpu", torch.float64).dtype,
    "half": lambda model, images, ids: model.half().dtype,
    "state_dict": lambda model, images, ids: model.state_dict(),
    "parameters": lambda model, images, ids: sum(p.numel() for p in model.parameters() if p.requires_grad),
    "logit_scale": lambda model, images, ids: model.logit_scale,
    "positional_embedding": lambda model, images, ids: model.positional_embedding,
    "text_projection": lambda model, images, ids: model.text_projection,
    "token_embedding": lambda model, images, ids: model.token_embedding(ids),
    "ln_final": lambda model, images, ids: model.ln_final(torch.ones(2, model.ln_final.weight.shape[0])),
    "transformer": lambda model, images, ids: model.transformer(torch.randn(77, 2, model.transformer.width)),
    "transformer.layers": lambda model, images, ids: (model.transformer.layers, model.transformer.width),
    "visual": lambda model, images, ids: model.visual(images),
    "visual.input_resolution": lambda model, images, ids: model.visual.input_resolution,
    "visual.output_dim": lambda model, images, ids: model.visual.output_dim,
    "visual.conv1": lambda model, images, ids: model.visual.conv1(images),
}
VIT = {
    "class_embedding": lambda visual: visual.class_embedding,
    "positional_embedding": lambda visual: visual.positional_embedding,
    "proj": lambda visual: visual.proj,
    "ln_pre": lambda visual: visual.ln_pre(torch.randn(2, visual.transformer.width)),
    "ln_post": lambda visual: visual.ln_post(torch.randn(2, visual.transformer.width)),
    "transformer": lambda visual: visual.transformer(torch.randn(17, 2, visual.transformer.width)),
}
RESNET = {
    name: (lambda visual, name=name: getattr(visual, name).weight) for name in ("conv2", "conv3", "bn1", "bn2", "bn3")
}
RESNET |= {
    "layer1 to 4": lambda visual: visual.layer4(
        visual.layer3(visual.layer2(visual.layer1(torch.randn(1, 16, 16, 16))))
    ),
    "avgpool": lambda visual: visual.avgpool(torch.randn(1, 3, 8, 8)),
}


def assert_same(expected, got):
    assert type(expected) is type(got) or isinstance(expected, torch.Tensor)
    if isinstance(expected, dict):
        assert sorted(expected) == sorted(got)
        for key in expected:
            assert_same(expected[key], got[key])
    elif isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    else:
        assert got == expected


def both(function, pair, *args):
    results = []
    for model in pair:
        torch.manual_seed(0)
        with torch.no_grad():
            results.append(function(model, *args))
    return results


@pytest.mark.parametrize("name", MODEL)
def test_model(name, pair, batch):
    assert_same(*both(MODEL[name], pair, *batch))


@pytest.mark.parametrize(("family", "name"), [*(("tiny ViT", n) for n in VIT), *(("tiny ResNet", n) for n in RESNET)])
def test_visual(family, name, loaded):
    visuals = [model.visual for model in loaded[family]]
    assert_same(*both((VIT if family == "tiny ViT" else RESNET)[name], visuals))


def test_no_public_name_is_forgotten(pair):
    assert {"available_models", "load", "tokenize"} <= {*ours.__all__}
    for module in ("clip", "model", "simple_tokenizer"):
        theirs, mine = getattr(clip, module), getattr(ours, module)
        for name, value in vars(theirs).items():
            if getattr(value, "__module__", None) == theirs.__name__ or name in ("_MODELS", "_tokenizer", "BICUBIC"):
                assert hasattr(mine, name), f"{module}.{name}"
    for original, mine in zip(pair[0].modules(), pair[1].modules(), strict=True):
        assert vars(original).keys() == vars(mine).keys()
        assert type(original).__name__ == type(mine).__name__
        for name in vars(type(original)):
            assert hasattr(mine, name), name


def test_fp16_mix(archives, family):
    """What a GPU gets: the same tensors in the same dtypes; and `convert_weights` brings fp32 back there."""
    expected = build_model(dict(read_checkpoint(archives[family]))).state_dict()
    assert_same(expected, ours.build_model(read_checkpoint(archives[family])).state_dict())
    model, _ = ours.load(archives[family], "cpu")
    ours.convert_weights(model)
    assert_same(expected, model.state_dict())


def test_convert_weights_of_any_module():
    modules = [torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2), torch.nn.Conv1d(8, 8, 1), torch.nn.LayerNorm(8))]
    modules.append(copy.deepcopy(modules[0]))
    convert_weights(modules[0])
    ours.convert_weights(modules[1])
    assert_same(modules[0].state_dict(), modules[1].state_dict())


# --- training, prompts, saving ----------------------------------------------------------------------------------------


def prompt_learning(model, ids):
    """The text encoder as CoOp and its kin rebuild it."""
    x = model.token_embedding(ids).type(model.dtype)
    x = x + model.positional_embedding.type(model.dtype)
    x = model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
    x = model.ln_final(x).type(model.dtype)
    return x[torch.arange(x.shape[0]), ids.argmax(dim=-1)] @ model.text_projection


def test_prompt_learning(pair, batch):
    expected, got = both(prompt_learning, pair, batch[1])
    assert torch.equal(got, expected)


def test_no_gradient_step_reaches_the_file(archives, family):
    before = archives[family].read_bytes()
    model, _ = ours.load(archives[family], "cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert archives[family].read_bytes() == before
    assert torch.equal(ours.load(archives[family], "cpu")[0].logit_scale + 1, model.logit_scale)


def test_the_model_outlives_its_file(archives, family, batch, tmp_path):
    path = tmp_path / "overwritten.pt"
    shutil.copyfile(archives[family], path)
    model, _ = ours.load(path, "cpu")
    with path.open("r+b") as file:  # in place: mapped pages would follow
        file.write(bytes(path.stat().st_size))
    expected, _ = ours.load(archives[family], "cpu")
    for output, right in zip(model(*batch), expected(*batch), strict=True):
        assert torch.equal(output, right)


def test_state_dicts_go_both_ways(pair, family, batch):
    original, model = pair
    other = original_model(family, seed=5)
    assert str(model.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    assert_same(*both(MODEL["logits_per_image"], (other, model), *batch))
    original.load_state_dict(model.state_dict())
    assert_same(*both(MODEL["logits_per_image"], (original, model), *batch))
    wrapped = torch.nn.ModuleDict({"clip": model})
    assert wrapped.state_dict().keys() == {f"clip.{key}" for key in original.state_dict()}
    wrapped.load_state_dict({f"clip.{key}": tensor for key, tensor in original.state_dict().items()}, assign=True)
    assert_same(original.state_dict(), model.state_dict())


def test_wrong_state_dicts_are_reported_as_by_the_original(pair):
    state_dict = pair[0].state_dict()
    del state_dict["ln_final.weight"]
    state_dict["extra"] = torch.zeros(1)
    reports = [model.load_state_dict(state_dict, strict=False) for model in pair]
    assert reports[0] == reports[1]
    state_dict["text_projection"] = torch.zeros(2, 2)
    for model in pair:
        with pytest.raises(RuntimeError, match=r"(?s)size mismatch for text_projection.*") as caught:
            model.load_state_dict(state_dict)
        assert "ln_final.weight" in str(caught.value)
        assert "extra" in str(caught.value)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(duplicate, pair, batch):
    twin = duplicate(pair[1])
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in pair[1].parameters()}
    assert_same(*both(MODEL["logits_per_image"], (pair[0], twin), *batch))


def test_all_columns_are_computed(pair, batch):
    """Programs read what `ln_final` gives."""
    for model in pair:
        shapes = []
        model.ln_final.register_forward_hook(lambda module, args, output, shapes=shapes: shapes.append(output.shape))
        assert model.encode_text(batch[1][:0]).shape == (0, 64)
        model.encode_text(batch[1])
        assert shapes == [(0, 77, 64), (3, 77, 64)]


@pytest.mark.slow
def test_compiled(pair, batch):
    original, model = pair
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same(*both(MODEL["logits_per_image"], (original, compiled), *batch))


def test_optimized(pair, family, archives, batch):
    """Texts are computed as far as they reach, for who asks for it."""
    model, preprocess = ours.load(archives[family], "cpu", optimize=True)
    assert type(model) is ours.OptimizedCLIP
    assert preprocess(picture(0)).shape == batch[0].shape[1:]
    widths = []
    embedding = model.hf_model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, args, output: widths.append(output.shape[-2]))
    for name in ("encode_image", "encode_text", "logits_per_image", "logits_per_text"):
        expected, got = both(MODEL[name], (pair[0], model), *batch)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert max(widths, default=0) < 77
    assert (model.dtype, model.context_length, model.vocab_size) == (torch.float32, 77, 49408)
    assert torch.equal(model.logit_scale, pair[0].logit_scale)


# --- what other projects do with the parts ----------------------------------------------------------------------------


def prompts_of_coop(model, ids):
    """Learned vectors between SOS and the class name, in the manner of CoOp."""
    embedded = model.token_embedding(ids).type(model.dtype)
    context = torch.linspace(-0.05, 0.05, 4 * embedded.shape[-1]).reshape(4, -1).requires_grad_()
    prompts = torch.cat([embedded[:, :1], context.expand(len(ids), -1, -1), embedded[:, 1:-4]], dim=1)
    x = (prompts + model.positional_embedding.type(model.dtype)).permute(1, 0, 2)
    for block in model.transformer.resblocks:
        x = block(x)
    x = model.ln_final(x.permute(1, 0, 2)).type(model.dtype)
    features = x[torch.arange(len(x)), (ids.argmax(-1) + 4).clamp(max=76)] @ model.text_projection
    return features, *torch.autograd.grad(features.sum(), context)


def cache_of_tip_adapter(model, images):
    """Keys and affinities of few-shot images, in the manner of Tip-Adapter."""
    with torch.no_grad():
        features = model.encode_image(images)
        features = features / features.norm(dim=-1, keepdim=True)
        keys = features.t()
        return (-1 * (5.5 - 5.5 * features @ keys)).exp() @ torch.eye(len(images)) * 1.0


def dense_of_maskclip(model, images):
    """One vector of the embedding space for each position, in the manner of MaskCLIP."""
    visual = model.visual
    if hasattr(visual, "attnpool"):
        x = images.type(model.dtype)
        for conv, bn in ((visual.conv1, visual.bn1), (visual.conv2, visual.bn2), (visual.conv3, visual.bn3)):
            x = torch.relu(bn(conv(x)))
        x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.avgpool(x)))))
        pool = visual.attnpool
        values = torch.nn.functional.linear(x.flatten(2).transpose(1, 2), pool.v_proj.weight, pool.v_proj.bias)
        return torch.nn.functional.linear(values, pool.c_proj.weight, pool.c_proj.bias), pool(x)
    x = visual.conv1(images.type(model.dtype)).flatten(2).permute(0, 2, 1)
    start = visual.class_embedding.to(x.dtype) + torch.zeros(len(x), 1, x.shape[-1], dtype=x.dtype)
    x = visual.ln_pre(torch.cat([start, x], dim=1) + visual.positional_embedding.to(x.dtype)).permute(1, 0, 2)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    y = torch.nn.functional.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias)
    values = last.attn.out_proj(y.chunk(3, dim=-1)[2])
    x = values + x
    x = x + last.mlp(last.ln_2(x))
    return visual.ln_post(x.permute(1, 0, 2))[:, 1:] @ visual.proj


def cam_of(model, images):
    """Activations and gradients at the last layers, in the manner of Grad-CAM."""
    visual, kept = model.visual, {}
    layers = (
        {"layer4": visual.layer4, "attnpool": visual.attnpool}
        if hasattr(visual, "attnpool")
        else {"block": visual.transformer.resblocks[-1], "ln_1": visual.transformer.resblocks[-1].ln_1}
    )

    def keep(name):
        def hook(module, inputs, output):
            kept[name] = output
            output.retain_grad()

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    model.encode_image(images)[:, 0].sum().backward()
    for handle in handles:
        handle.remove()
    return [tensor for name in layers for tensor in (kept[name], kept[name].grad)]


def attention_of(model, ids):
    """Weights of a block's attention, and its parts."""
    block = model.transformer.resblocks[0]
    x = block.ln_1((model.token_embedding(ids) + model.positional_embedding).permute(1, 0, 2))
    mask = model.build_attention_mask()
    assert torch.equal(mask, block.attn_mask)
    output, weights = block.attn(x, x, x, need_weights=True, attn_mask=mask)
    each = block.attn(x, x, x, need_weights=True, attn_mask=mask < 0, average_attn_weights=False)[1]
    hidden = block.mlp.c_proj(block.mlp.gelu(block.mlp.c_fc(block.ln_2(x))))
    return output, weights, each, hidden, block.attention(x), block.attn.in_proj_weight, block.attn.in_proj_bias


@pytest.mark.parametrize("snippet", [prompts_of_coop, cache_of_tip_adapter, dense_of_maskclip, cam_of, attention_of])
def test_snippets_of_other_projects(snippet, pair, batch):
    images, ids = batch
    inputs = ids if snippet in (prompts_of_coop, attention_of) else images
    expected, got = (snippet(model, inputs) for model in pair)
    expected, got = ([value] if isinstance(value, torch.Tensor) else value for value in (expected, got))
    for right, ours_ in zip(expected, got, strict=True):
        assert torch.equal(ours_, right)


def test_download_takes_the_addresses(tmp_path, monkeypatch):
    assert clip.clip._MODELS == ours.clip._MODELS
    monkeypatch.setattr(ours.clip, "download", lambda name, root: Path(root, name))
    assert ours.clip._download(ours.clip._MODELS["RN50"], tmp_path) == str(tmp_path / "RN50")
    with pytest.raises(RuntimeError, match=r"take one of clip\._MODELS"):
        ours.clip._download("https://example.org/x.pt")


# --- load -------------------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same(pair, family, archives, repositories, batch, tmp_path):
    original, model = pair
    torch.save(model.state_dict(), tmp_path / "state.pt")
    for source in (str(tmp_path / "state.pt"), repositories[family], str(repositories[family])):
        loaded, preprocess = ours.load(source, "cpu")
        assert not loaded.training
        assert_same(*both(MODEL["logits_per_image"], (original, loaded), *batch))
        assert preprocess(picture(0)).shape == batch[0].shape[1:]


def test_fp32_files_are_rounded_as_by_the_original(family, tmp_path):
    torch.save(original_model(family).state_dict(), tmp_path / "fp32.pt")
    assert_same(
        load_original(tmp_path / "fp32.pt").state_dict(), ours.load(tmp_path / "fp32.pt", "cpu")[0].state_dict()
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_preprocess(mode):
    expected = clip.clip._transform(64)
    transform = pickle.loads(pickle.dumps(ours.clip._transform(64)))
    for size in [(90, 70), (640, 427), (64, 64), (20, 33)]:
        image = picture(1, size, mode)
        assert torch.equal(transform(image), expected(image))


def with_cuda_constants(archive: Path, path: Path) -> Path:
    """The archive with the devices of the published ones, which were traced on a GPU."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            content = source.read(info)
            if "/code/" in info.filename and info.filename.endswith(".py"):
                content = content.replace(b'torch.device("cpu")', b'torch.device("cuda:0")')
            target.writestr(info, content)
    return path


@pytest.mark.parametrize("traced_on", ["cpu", "cuda"])
def test_jit(traced_on, pair, family, archives, batch, tmp_path):
    path = archives[family]
    if traced_on == "cuda":
        path = with_cuda_constants(path, tmp_path / "cuda.pt")
        assert path.read_bytes() != archives[family].read_bytes()
    script, preprocess = ours.load(path, "cpu", jit=True)
    assert isinstance(script, torch.jit.ScriptModule)
    assert not script.training
    assert {p.dtype for p in script.parameters()} == {torch.float32}
    assert preprocess(picture(0)).shape == batch[0].shape[1:]
    for name in ("encode_image", "encode_text", "logits_per_image", "logits_per_text"):
        assert_same(*both(MODEL[name], (pair[1], script), *batch))


def test_jit_of_a_state_dict_warns(pair, tmp_path):
    torch.save(pair[0].state_dict(), tmp_path / "state.pt")
    with pytest.warns(UserWarning, match="is not a TorchScript archive"):
        assert isinstance(ours.load(tmp_path / "state.pt", "cpu", jit=True)[0], ours.CLIP)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ViT-B-33", "neither a file nor one of .* did you mean 'ViT-B/32'"),
        ("missing/model.pt", "neither a file nor one of"),
        ("", "neither a file nor one of|no converted folder"),
    ],
)
def test_unknown_names(name, sentence):
    for module in (clip, ours):
        with pytest.raises(RuntimeError) as caught:
            module.load(name, "cpu")
    assert isinstance(caught.value, ours.LoadError)
    assert re.search(sentence, str(caught.value))


def test_unknown_hub_id(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no such repository\nand more")

    monkeypatch.setattr("hf_clip.openai.clip.HFCLIPModel.from_pretrained", offline)
    with pytest.raises(ours.LoadError, match=r"ViT-B/99 is not one of .*ViT-B/32.*\(no such repository\)"):
        ours.load("ViT-B/99", "cpu")


def test_private_hub_id(monkeypatch):
    """What the Hub answered is said, not only that nothing loads."""
    with LocalHub(token="secret") as hub:
        hub.use_in_process(monkeypatch)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        HfApi(token="secret").create_repo("org/private", private=True)
        with pytest.raises(ours.LoadError, match=r"the Hub answered 401, .*: log in with `hf auth login`\)$"):
            ours.load("org/private", "cpu")
        with pytest.raises(ours.LoadError, match=r"org/absent is not a local folder"):
            ours.load("org/absent", "cpu")


def test_damaged_files_and_folders(archives, repositories, tmp_path):
    whole = archives["tiny ViT"].read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "folder").mkdir()
    for name, sentence in [
        ("cut.pt", "fetch it again"),
        ("other.pt", "no checkpoint of"),
        ("folder", "no config.json"),
    ]:
        with pytest.raises(ours.LoadError, match=sentence) as caught:
            ours.load(tmp_path / name, "cpu")
        assert name in str(caught.value)
    with pytest.raises(ours.LoadError, match="load it without jit=True"):
        ours.load(repositories["tiny ViT"], "cpu", jit=True)


def test_wrong_texts_and_images(pair):
    for module in (clip, ours):
        with pytest.raises(RuntimeError, match=r"word word.*77") as caught:
            module.tokenize(["one", "word " * 90])
        with pytest.raises(TypeError):
            module.tokenize(5)
    assert re.fullmatch(r"text 1 of 2 \(.*\) has 92 tokens, over 77: pass truncate=True", str(caught.value))
    assert (caught.value.index, caught.value.tokens, caught.value.limit) == (1, 92, 77)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.index) == (str(caught.value), 1)
    with pytest.raises(TypeError, match=r"texts\[1\] is of type int"):
        ours.tokenize(["one", 5])
    for model in pair:
        with pytest.raises(RuntimeError) as caught:
            model.encode_image(torch.zeros(1, 3, 96, 96))
    assert "96x96" in str(caught.value)


# --- around -----------------------------------------------------------------------------------------------------------


def test_hubconf():
    names = runpy.run_path(str(ROOT / "hubconf.py"))
    assert names["tokenize"]() is ours.tokenize
    for entry, name in [("RN50x4", "RN50x4"), ("ViT_B_32", "ViT-B/32"), ("ViT_L_14_336px", "ViT-L/14@336px")]:
        assert callable(names[entry])
        assert names[entry].args == (name,)


@pytest.mark.slow
def test_hf_clip_does_not_import_it():
    code = "import sys, hf_clip; assert 'hf_clip.openai' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
