import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.exports import write_export

from hf_clip import HFCLIPExportedModel, HFCLIPModel, HFCLIPProcessor, ZeroShotClassifier
from hf_clip.exported import load_exported, tensors
from hf_clip.exported import model as exported_model
from hf_clip.exported.manifest import MANIFEST, is_exported, read_manifest
from hf_clip.loading import load_clip, load_text_tower


@pytest.fixture
def clip(repositories, family) -> HFCLIPModel:
    return HFCLIPModel.from_pretrained(repositories[family]).eval()


@pytest.fixture
def folder(clip, tmp_path, monkeypatch):
    """An exported folder whose graphs are the model itself."""
    write_export(tmp_path, clip)

    @torch.no_grad()
    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        ((name, array),) = inputs.items()
        encode = clip.encode_image if name == "pixel_values" else clip.encode_text
        return encode(torch.from_numpy(array)).numpy()

    monkeypatch.setitem(exported_model.OPEN, "onnx", lambda file, device: run)
    monkeypatch.setitem(exported_model.CHECK_DEVICE, "onnx", lambda name, device: None)
    return tmp_path


def test_the_methods_give_what_the_model_gives(folder, clip):
    exported = HFCLIPExportedModel(folder)
    size = clip.config.vision_config.image_size
    pixels, ids = torch.randn(2, 3, size, size), torch.tensor([[49406, 320, 49407], [49406, 49407, 0]])
    with torch.no_grad():
        expected = clip(input_ids=ids, pixel_values=pixels)
        torch.testing.assert_close(exported.get_image_features(pixels).pooler_output, clip.encode_image(pixels))
        torch.testing.assert_close(exported.get_text_features(ids).pooler_output, clip.encode_text(ids))
    actual = exported(ids, pixels)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        torch.testing.assert_close(actual[name], expected[name])


def test_the_first_precision_is_taken_unless_one_is_asked_for(folder):
    assert HFCLIPExportedModel(folder).precision == "fp32"
    assert HFCLIPExportedModel(folder, "q8").precision == "q8"
    with pytest.raises(ValueError, match=r"has no fp16, only fp32, q8: pass dtype float32"):
        HFCLIPExportedModel(folder, "fp16")


def test_a_saved_classifier_serves_the_exported_model(folder, clip, repositories, family, tmp_path):
    processor = HFCLIPProcessor.from_pretrained(repositories[family])
    saved = ZeroShotClassifier(clip, processor, ["a", "b"], mode="any")
    image = Image.new("RGB", (70, 60), "red")
    scores = saved.scores(image)
    saved.save(tmp_path / "saved.safetensors")
    for precision in ("fp32", "q8"):
        exported = HFCLIPExportedModel(folder, precision)
        loaded = ZeroShotClassifier.load(tmp_path / "saved.safetensors", exported, processor)
        torch.testing.assert_close(loaded.scores(image), scores)


def test_a_dtype_picks_the_precision(folder, repositories, family, monkeypatch):
    monkeypatch.setattr(tensors, "load_exported_processor", lambda _: None)
    for dtype, precision in ((None, "fp32"), (torch.float32, "fp32"), (torch.int8, "q8")):
        assert load_clip(folder, dtype=dtype)[0].precision == precision
    manifest = json.loads((folder / MANIFEST).read_text())
    for graphs in manifest["graphs"].values():
        del graphs["fp32"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert load_clip(folder)[0].precision == "q8"
    with pytest.raises(ValueError, match="has no fp32, only q8: pass dtype int8"):
        load_clip(folder, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"cannot compute in torch\.bfloat16: choose float16, int8, or none"):
        load_clip(folder, dtype=torch.bfloat16)
    for load in (load_clip, load_text_tower):
        with pytest.raises(ValueError, match="export it with --precision q8"):
            load(repositories[family], dtype=torch.int8)


def test_a_graph_is_opened_when_it_is_first_used(folder, monkeypatch):
    opened = []
    open_graph = exported_model.OPEN["onnx"]
    monkeypatch.setitem(
        exported_model.OPEN, "onnx", lambda file, device: opened.append(file.name) or open_graph(file, device)
    )
    exported = HFCLIPExportedModel(folder)
    assert opened == []
    for _ in range(2):
        exported.encode_text(torch.tensor([[49406, 49407]]))
    assert opened == ["text.onnx"]


def test_a_released_graph_is_opened_again(folder, monkeypatch):
    opened, open_graph = [], exported_model.OPEN["onnx"]
    monkeypatch.setitem(
        exported_model.OPEN, "onnx", lambda file, device: opened.append(file.name) or open_graph(file, device)
    )
    exported = exported_model.ExportedCLIP(folder)
    for _ in range(2):
        exported.encode_text(np.array([[49406, 49407]]))
        exported.release("text")
    exported.release("vision")
    assert opened == ["text.onnx", "text.onnx"]


def test_a_device_is_checked_before_a_graph_is_opened(folder, monkeypatch):
    checked = []
    monkeypatch.setitem(exported_model.CHECK_DEVICE, "onnx", lambda *arguments: checked.append(arguments))
    HFCLIPExportedModel(folder)
    HFCLIPExportedModel(folder, device="cuda:0")
    assert checked == [(str(folder), "cpu"), (str(folder), "cuda")]


@pytest.mark.parametrize("mode", ["one", "any", "each"])
def test_arrays_score_as_tensors_do(folder, clip, repositories, family, mode, tmp_path):
    processor = HFCLIPProcessor.from_pretrained(repositories[family])
    images = [Image.radial_gradient("L"), Image.linear_gradient("L")]
    clips = (clip, processor), load_exported(write_export(folder, clip, processor))
    tensors, arrays = (ZeroShotClassifier(*pair, ["a", "b"], ["a {}", "the {}"], mode=mode) for pair in clips)
    assert isinstance(arrays.class_embeds, np.ndarray)
    np.testing.assert_allclose(arrays.scores(images), tensors.scores(images), atol=1e-5)
    tensors.save(tmp_path / "classes.safetensors")
    read = ZeroShotClassifier.load(tmp_path / "classes.safetensors", *clips[1])
    assert all(set(decision.labels) <= {"a", "b"} for _, decision in read.decisions(images))
    np.testing.assert_allclose(read.scores(images), tensors.scores(images), atol=1e-5)
    calibrated = read.calibrate([*images] * 10, ["a", "b"] * 10)
    np.testing.assert_allclose(
        calibrated.scores(images), tensors.calibrate([*images] * 10, ["a", "b"] * 10).scores(images), atol=1e-3
    )


def test_a_mask_is_refused(folder):
    with pytest.raises(ValueError, match="attention_mask is not an input"):
        HFCLIPExportedModel(folder).encode_text(torch.tensor([[1]]), torch.tensor([[1]]))


def test_a_classifier_takes_it(folder, repositories, family):
    _, processor = load_clip(repositories[family])
    assert len(ZeroShotClassifier(HFCLIPExportedModel(folder), processor, ["a", "b"]).class_embeds) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graphs": {"joint": {"fp32": "model.onnx"}}}, "neither a vision nor a text graph"),
        ({"target": "immich"}, "graphs of Immich"),
        ({"graphs": {"vision": {"fp32": "gone.onnx"}}}, r"gone\.onnx is missing"),
        ({"format": "other"}, "not a manifest that this hf_clip reads"),
        ({"surplus": 1}, "not a manifest that this hf_clip reads"),
        ({"runtime": "x"}, "its runtime is 'x'"),
        ({"graphs": None}, "its graphs is None"),
        ({"graphs": {"vision": {"fp32": 5}}}, "its fp32 is 5"),
        *(({"graphs": {"vision": {"fp32": path}}}, "outside of the folder") for path in ("/etc/x", "a/../../x", "a\0")),
        ({"tokenizer": "..\\x"}, "outside of the folder"),
        ({"image_processor": None}, "its image_processor is None"),
        ({"logit_scale": 1e9}, "its logit_scale 1e\\+09"),
        ({"logit_scale": float("nan")}, "its logit_scale is nan"),
        ({"config": {}}, "its vision_config is None"),
    ],
)
def test_a_folder_that_cannot_be_run_says_why(folder, change, message):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ValueError, match=message):
        load_clip(folder)


def test_a_part_that_was_not_exported_is_named(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["graphs"]["text"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="has no text graph"):
        HFCLIPExportedModel(folder).encode_text(torch.tensor([[1]]))


def test_only_exported_folders_have_a_manifest(folder, repositories, family):
    assert is_exported(folder)
    assert not is_exported(repositories[family])
    assert read_manifest(folder).runtime == "onnx"
