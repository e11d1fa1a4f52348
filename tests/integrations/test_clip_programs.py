"""The drop-in under packages that programs around CLIP use, beside the original's modules under them."""

import copy
import warnings
from pathlib import Path

import clip.model as theirs
import numpy as np
import onnxruntime
import pytest
import torch
from support.originals import inputs, load_original
from torch import nn

import hf_clip.openai as ours

pytestmark = pytest.mark.integration


@pytest.fixture
def pair(family, archives):
    return load_original(archives[family]), ours.load(archives[family], "cpu")[0]


class Texts(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(ids)


def run_onnx(path: Path, *arrays: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return session.run(None, {name: array.numpy() for name, array in zip(names, arrays, strict=True)})[0]


@pytest.mark.parametrize("dynamo", [False, True], ids=["script exporter", "torch.export"])
def test_onnx(dynamo, pair, tmp_path):
    """Traced with one image and one text, run on several, by both exporters."""
    images, texts = inputs(pair[0])
    results = []
    for index, model in enumerate(pair):
        for name, part, one, many in (
            ("visual", model.visual, images[:1], images),
            ("text", Texts(model), texts[:1], texts),
        ):
            path = tmp_path / f"{index}-{name}.onnx"
            axes = {"dynamic_axes": {"input": {0: "batch"}, "output": {0: "batch"}}}
            if dynamo:
                axes = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1)},)}
                one = many
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                names = {"input_names": ["input"], "output_names": ["output"]}
                torch.onnx.export(part, (one,), path, dynamo=dynamo, opset_version=18, **names, **axes)
            results.append(run_onnx(path, many))
            assert np.abs(results[-1] - part(many).detach().numpy()).max() < 1e-4
    np.testing.assert_array_equal(results[2], results[0])
    np.testing.assert_array_equal(results[3], results[1])


@pytest.mark.training
@pytest.mark.parametrize("targets", [["c_fc", "c_proj"], ["attn"], ["attn", "c_fc", "c_proj", "out_proj"], ["conv1"]])
def test_peft(targets, pair):
    """LoRA by names of layers, a MultiheadAttention among them; trained, merged and saved alike."""
    import peft

    images, texts = inputs(pair[0])
    results = []
    for model in pair:
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
        names = [name for name, p in adapted.named_parameters() if p.requires_grad]
        for _ in range(2):
            optimizer.zero_grad()
            sum(logits.square().mean() for logits in adapted(images, texts)).backward()
            optimizer.step()
        state = peft.get_peft_model_state_dict(adapted)
        output = adapted.model.encode_text(texts), adapted.model.encode_image(images)
        merged = adapted.merge_and_unload()
        results.append((names, state, output, merged.state_dict(), merged.encode_text(texts)))
    right, got = results
    assert right[0] == got[0]
    assert right[0]
    for a, b in ((right[1], got[1]), (right[3], got[3])):
        assert list(a) == list(b)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(map(torch.equal, right[2], got[2]))
    assert torch.equal(right[4], got[4])


@pytest.mark.training
@pytest.mark.parametrize("version", ["ModelEmaV2", "ModelEmaV3"])
def test_timm_averages(version, pair):
    from timm import utils

    images, texts = inputs(pair[0])
    states = []
    for model in pair:
        ema = getattr(utils, version)(model, decay=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            sum(logits.square().mean() for logits in model(images, texts)).backward()
            optimizer.step()
            ema.update(model)
        states.append(ema.state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[1]["module.text_projection"], pair[1].text_projection)


def test_grad_cam(pair):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images, texts = inputs(pair[0])
    maps = []
    for model in pair:

        class Scores(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, images):
                return self.model(images, texts)[0]

        visual = model.visual
        is_resnet = hasattr(visual, "layer4")
        layer = visual.layer4 if is_resnet else visual.transformer.resblocks[-1].ln_1
        reshape = None if is_resnet else lambda x: x[1:].permute(1, 2, 0).unflatten(2, (4, 4))
        with GradCAM(Scores(model), [layer], reshape_transform=reshape) as cam:
            maps.append(cam(images, [ClassifierOutputTarget(0)] * len(images)))
    np.testing.assert_array_equal(*maps)


def test_subclasses_under_the_script_exporter(pair, tmp_path):
    """CLIP-ONNX: a copy of the text tower with an attention of its own, dynamic in its batch."""
    _, texts = inputs(pair[0])
    results = []
    for index, (model, module) in enumerate(zip(pair, (theirs, ours.model), strict=True)):
        model = copy.deepcopy(model)
        assert type(model.transformer.resblocks[0]) is module.ResidualAttentionBlock
        for block in model.transformer.resblocks:
            block.attn_mask = block.attn_mask.clone()
        path = tmp_path / f"{index}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Texts(model), (texts,), path, dynamo=False, input_names=["input"], dynamic_axes={"input": {0: "b"}}
            )
        results.append(run_onnx(path, texts[:2]))
    np.testing.assert_array_equal(*results)
