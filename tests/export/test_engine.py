import pytest
import torch
from torch import nn

from hf_clip import HFCLIPModel, HFCLIPVisionModel, export_clip
from hf_clip.export import engine
from hf_clip.export.engine import _check_exportable, _plan
from hf_clip.export.targets import TARGETS, write_settings
from hf_clip.export.towers import optimized


@pytest.fixture
def model(repositories, family) -> HFCLIPModel:
    return HFCLIPModel.from_pretrained(repositories[family]).eval()


@pytest.fixture(autouse=True)
def no_packages(monkeypatch):
    """Plans and refusals come before any runtime is needed."""
    monkeypatch.setattr(engine, "require", lambda *_: None)


def adapted(model: nn.Module) -> nn.Module:
    class Layer(nn.Linear):
        pass

    Layer.__module__ = "peft.tuners.lora.layer"
    model.text_projection = Layer(1, 1)
    return model


def quantized(model: nn.Module) -> nn.Module:
    layer = model.text_model.encoder.layers[0].mlp.fc1
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    return model


REFUSED = {
    "optimized": (lambda model: model.optimize_for_inference(), "before optimize_for_inference"),
    "quantized": (quantized, "choose precision q8"),
    "adapted": (adapted, "merge_and_unload"),
    "half": (lambda model: model.half(), "choose precision fp16"),
    "training": (lambda model: model.train(), "call model.eval"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_is_not_its_checkpoint_is_refused(model, kind, tmp_path):
    change, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        export_clip(change(model), tmp_path / "out", processor=object())
    assert not list(tmp_path.iterdir())


def test_a_model_needs_its_processor(model, tmp_path):
    with pytest.raises(ValueError, match="pass processor too"):
        export_clip(model, tmp_path / "out")


def test_a_tower_is_no_clip(repositories):
    with pytest.raises(TypeError, match="HFCLIPVisionModel is not a CLIP with both towers"):
        _check_exportable(HFCLIPVisionModel.from_pretrained(repositories["tiny ViT"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "coreml"}, "runtime 'coreml' is unknown: choose from onnx, openvino"),
        ({"target": "rclip"}, "target 'rclip' is unknown"),
        ({"precisions": ["int4"]}, "precision 'int4' is unknown"),
        ({"precisions": []}, "no precision is given"),
        ({"parts": ["logits"]}, "part 'logits' is unknown"),
        ({"parts": ["joint"], "target": "fastembed"}, "part 'joint' is unknown: choose from vision, text"),
        ({"runtime": "openvino", "target": "triton"}, "target triton has ONNX files"),
    ],
)
def test_arguments_that_do_not_go_together_are_named(options, message):
    given = {"runtime": "onnx", "parts": None, "precisions": ["fp32"], "target": "transformers.js", **options}
    with pytest.raises(ValueError, match=message):
        _plan(**given)


def test_q8_of_a_resnet_asks_for_images(repositories, tmp_path):
    with pytest.raises(ValueError, match="needs calibration images"):
        export_clip(repositories["tiny ResNet"], tmp_path / "out", precisions=["q8"])


@pytest.mark.parametrize(("runtime", "asked"), [("onnx", []), ("openvino", ["nncf"])])
def test_q8_asks_for_its_quantizer(monkeypatch, runtime, asked):
    names = []
    monkeypatch.setattr(engine, "require", lambda package, *_: names.append(package))
    _plan(runtime, None, ["fp32", "q8"], "transformers.js")
    assert names == [*engine.NEEDED[runtime], *asked]


def test_what_is_traced_shares_the_models_tensors(model, family):
    fast = optimized(model)
    assert fast is not model
    assert fast.optimizations
    assert fast.logit_scale.data_ptr() == model.logit_scale.data_ptr()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.optimizations


def test_an_output_that_exists_is_kept(repositories, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="choose another output"):
        export_clip(repositories["tiny ViT"], tmp_path)


def test_a_failed_export_leaves_nothing(repositories, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "write_onnx", fail)
    with pytest.raises(KeyboardInterrupt):
        export_clip(repositories["tiny ViT"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_settings_load_as_those_of_stock_clip(model, repositories, family, tmp_path):
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPConfig, CLIPTokenizer

    from hf_clip import HFCLIPProcessor

    processor = HFCLIPProcessor.from_pretrained(repositories[family])
    write_settings(tmp_path, TARGETS["transformers.js"], model.config, processor)
    config = CLIPConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.projection_dim) == ("clip", model.config.projection_dim)
    assert AutoImageProcessor.from_pretrained(tmp_path).crop_size == processor.image_processor.crop_size
    tokenizer, text = AutoTokenizer.from_pretrained(tmp_path), "two curly dogs"
    assert isinstance(tokenizer, CLIPTokenizer)
    assert tokenizer(text).input_ids == processor.tokenizer(text).input_ids
    assert tokenizer.model_max_length == processor.tokenizer.model_max_length
