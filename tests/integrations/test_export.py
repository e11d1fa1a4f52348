"""Exported folders, on the runtimes and in the programs that read them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from support.commands import run
from support.image_corpus import random_image

from hf_clip import (
    HFCLIPImageProcessor,
    HFCLIPModel,
    HFCLIPProcessor,
    ZeroShotClassifier,
    embed_images,
    embed_texts,
    export_clip,
    load_clip,
)
from hf_clip.embedding.identity import OtherModelError
from hf_clip.parity.reference import image_files

pytestmark = pytest.mark.integration

LABELS = ["a cat", "a dog"]
FILES = {"vision": "onnx/vision_model.onnx", "text": "onnx/text_model.onnx", "joint": "onnx/model.onnx"}


@pytest.fixture(scope="module")
def exported(repositories, tmp_path_factory) -> dict[str, Path]:
    """Both families, every part and precision."""
    folder = tmp_path_factory.mktemp("exported")
    images = tmp_path_factory.mktemp("calibration")
    for seed in range(4):
        random_image("RGB", 40, 50, np.random.default_rng(seed)).save(images / f"{seed}.png")
    for family, source in repositories.items():
        export_clip(
            source,
            folder / family,
            parts=["vision", "text", "joint"],
            precisions=["fp32", "fp16", "q8"],
            preprocessing=True,
            calibration=images,
            report=lambda _: None,
        )
    return {family: folder / family for family in repositories}


@pytest.fixture(scope="module")
def openvino(repositories, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("openvino")
    for family, source in repositories.items():
        export_clip(source, folder / family, runtime="openvino", precisions=["fp32", "fp16"], report=lambda _: None)
    return {family: folder / family for family in repositories}


@pytest.fixture
def model(repositories, family) -> HFCLIPModel:
    return HFCLIPModel.from_pretrained(repositories[family]).eval()


@pytest.fixture
def processor(repositories, family) -> HFCLIPProcessor:
    return HFCLIPProcessor.from_pretrained(repositories[family])


def images(count: int) -> list[Image.Image]:
    return [random_image("RGB", 70, 50, np.random.default_rng(seed)) for seed in range(count)]


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


def ids_of(config, batch: int, length: int) -> torch.Tensor:
    ids = torch.randint(1, 1000, (batch, length), generator=torch.Generator().manual_seed(length))
    ids[:, -1] = config.text_config.eos_token_id
    return ids


@pytest.mark.parametrize("runtime", ["exported", "openvino"])
@pytest.mark.parametrize(("batch", "length"), [(1, 3), (2, 16), (7, 77)])
@torch.no_grad()
def test_towers_equal_the_model_at_every_batch_and_length(request, model, family, runtime, batch, length):
    loaded, _ = load_clip(request.getfixturevalue(runtime)[family])
    size = model.config.vision_config.image_size
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    ids = ids_of(model.config, batch, min(length, model.config.text_config.max_position_embeddings))
    assert relative(loaded.encode_image(pixels), model.encode_image(pixels)) < 1e-5
    assert relative(loaded.encode_text(ids), model.encode_text(ids)) < 1e-5
    ours, theirs = loaded(ids, pixels), model(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(ours.logits_per_image, theirs.logits_per_image, rtol=1e-4, atol=1e-4)


def test_graphs_have_the_names_that_readers_expect(exported, family):
    import onnx

    expected = {
        "vision": (["pixel_values"], ["image_embeds"]),
        "text": (["input_ids"], ["text_embeds"]),
        "joint": (
            ["input_ids", "pixel_values"],
            ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
        ),
    }
    for part, names in expected.items():
        file = exported[family] / FILES[part]
        onnx.checker.check_model(str(file), full_check=True)
        graph = onnx.load(file)
        assert ([x.name for x in graph.graph.input], [x.name for x in graph.graph.output]) == names
        assert {entry.domain for entry in graph.opset_import} == {""}
        types = {
            value.name: value.type.tensor_type.elem_type
            for value in onnx.shape_inference.infer_shapes(graph).graph.value_info
        }
        for node in graph.graph.node:
            if node.op_type == "ArgMax":
                assert types[node.input[0]] == onnx.TensorProto.INT32, "int64 has no ArgMax in browsers"


def test_every_graph_passes_the_full_check_and_has_standard_operators(exported):
    import onnx

    files = [file for folder in exported.values() for file in folder.rglob("*.onnx")]
    assert len(files) == 2 * (9 + 3 + 1)  # parts in three precisions, towers from RGB, preprocessing
    for file in files:
        onnx.checker.check_model(str(file), full_check=True)
        graph = onnx.load(file)
        assert {entry.domain for entry in graph.opset_import} == {""}, file.name
        assert not any(node.metadata_props for node in graph.graph.node), file.name


def test_a_vit_has_no_convolution_and_a_resnet_no_batch_norm(exported):
    import onnx

    for family, absent in (("tiny ViT", "Conv"), ("tiny ResNet", "BatchNormalization")):
        for part in ("vision", "joint"):
            operators = {node.op_type for node in onnx.load(exported[family] / FILES[part]).graph.node}
            assert absent not in operators


def test_exporting_leaves_the_model_as_it_was(model, processor, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    export_clip(model, tmp_path / "out", processor=processor, parts=["vision"], report=lambda _: None)
    assert [type(module) for module in model.modules()] == classes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.optimizations


def test_padding_with_eot_or_zero_changes_nothing(exported, model, family):
    loaded, _ = load_clip(exported[family])
    ids = ids_of(model.config, 2, 5)
    zeros = torch.nn.functional.pad(ids, (0, 4))
    ends = torch.nn.functional.pad(ids, (0, 4), value=model.config.text_config.eos_token_id)
    torch.testing.assert_close(loaded.encode_text(zeros), loaded.encode_text(ends))
    torch.testing.assert_close(loaded.encode_text(zeros), loaded.encode_text(ids))


def test_parity_json_holds_errors_and_sizes_of_each_file(exported, family):
    parity = json.loads((exported[family] / "parity.json").read_text())
    assert len(parity["files"]) == 9
    limits = {"fp32": (1e-5, 1 - 1e-9), "fp16": (1e-2, 0.9999), "q8": (1, 0.9)}
    sizes = {}
    for name, row in parity["files"].items():
        most, least = limits[row["precision"]]
        assert row["relative_error_max"] < most, name
        assert row["cosine_min"] > least, name
        assert row["bytes"] == (exported[family] / name).stat().st_size
        sizes[row["part"], row["precision"]] = row["bytes"]
    assert sizes["text", "fp16"] < 0.6 * sizes["text", "fp32"]
    assert sizes["text", "q8"] < 0.4 * sizes["text", "fp32"]
    assert parity["evaluation"] == "not evaluated"


def test_fp16_graphs_take_and_give_float32(exported, family, model):
    loaded, _ = load_clip(exported[family], dtype=torch.float16)
    assert loaded.precision == "fp16"
    embeds = loaded.encode_text(ids_of(model.config, 2, 7))
    assert embeds.dtype == torch.float32
    assert embeds.isfinite().all()


def test_the_runtime_works_where_torch_cannot_be_imported(exported, family, tmp_path):
    for folder in ("photos", "output"):
        (tmp_path / folder).mkdir()
    for name in ("0.png", "1.png"):
        random_image("RGB", 40, 50, np.random.default_rng()).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.png").write_text("no image")
    client = Path(__file__).parents[1] / "support" / "without_torch_client.py"
    arguments = [exported[family], tmp_path / "photos", tmp_path / "output"]
    done = subprocess.run([sys.executable, "-W", "ignore", client, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("runtime", ["exported", "openvino"])
def test_classifier_and_embedders_take_the_exported_model(request, family, runtime, model, processor):
    loaded, loaded_processor = load_clip(request.getfixturevalue(runtime)[family])
    pictures, texts = images(3), ["a photo of a cat", "two “curly” dogs", "a"]
    close = {"rtol": 1e-4, "atol": 1e-4}
    expected = embed_images(model, processor, pictures)
    torch.testing.assert_close(embed_images(loaded, loaded_processor, pictures), expected, **close)
    torch.testing.assert_close(
        embed_texts(loaded, loaded_processor, texts), embed_texts(model, processor, texts), **close
    )
    theirs, ours = (
        ZeroShotClassifier(*clip, LABELS).logits(pictures) for clip in ((model, processor), (loaded, loaded_processor))
    )
    torch.testing.assert_close(ours, theirs, **close)


def test_class_embeddings_of_another_model_are_refused(exported, repositories, family, tmp_path):
    other = next(path for name, path in exported.items() if name != family)
    ZeroShotClassifier(*load_clip(repositories[family]), LABELS).save(tmp_path / "labels.safetensors")
    assert ZeroShotClassifier.load(tmp_path / "labels.safetensors", *load_clip(exported[family])).labels == LABELS
    with pytest.raises(OtherModelError):
        ZeroShotClassifier.load(tmp_path / "labels.safetensors", *load_clip(other))


def test_the_commands_take_an_exported_folder(exported, family, repositories, tmp_path, capsys):
    for index, image in enumerate(images(2)):
        image.save(tmp_path / f"{index}.png")
    for folder in (exported[family], repositories[family]):
        assert run("classify", tmp_path, "--labels", "a cat,a dog", "--model", folder, "--json") == 0
        # one store for both: the embeddings agree
        assert run("embed", tmp_path, "--output", tmp_path / "all.safetensors", "--model", folder) == 0
    assert re.search(r", 0 new embeddings of \d+ dimensions, 2 images of earlier runs", capsys.readouterr().out)


@pytest.mark.parametrize("first", ["PyTorch", "ONNX Runtime"])
def test_a_store_refuses_the_embeddings_of_another_model(exported, repositories, first, tmp_path, capsys):
    images(1)[0].save(tmp_path / "0.png")
    one = (repositories if first == "PyTorch" else exported)["tiny ViT"]
    assert run("embed", tmp_path, "--output", tmp_path / "all.safetensors", "--model", one) == 0
    assert run("embed", tmp_path, "--output", tmp_path / "all.safetensors", "--model", exported["tiny ResNet"]) == 1
    assert "another model" in capsys.readouterr().err


@pytest.mark.parametrize("runtime", ["exported", "openvino"])
def test_verify_measures_every_file_again(request, runtime, family, repositories, tmp_path, capsys):
    folder = shutil.copytree(request.getfixturevalue(runtime)[family], tmp_path / "copy")
    assert run("verify", folder, "--original", repositories[family]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "equal"
    recorded = json.loads((folder / "parity.json").read_text())
    names = sorted(recorded["files"], key=lambda name: -recorded["files"][name]["relative_error_max"])
    recorded["files"][names[0]]["relative_error_max"] = 0.0
    recorded["files"][names[1]]["bytes"] -= 1
    (folder / names[2]).unlink()
    (folder / "parity.json").write_text(json.dumps(recorded))
    assert run("verify", folder, "--original", repositories[family]) == 1
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines()[:-1])
    assert "relative_error_max is" in said[names[0]]
    assert "bytes, recorded are" in said[names[1]]
    assert said[names[2]] == "is missing"


def height_is_first(array: np.ndarray, size: int) -> bool:
    height, width = array.shape[:2]
    scale = size / min(height, width)
    return height - height * scale > 2 * (width - width * scale) - 2


def test_the_preprocessing_graph_gives_the_processors_pixels(exported, family, processor):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[family] / "preprocess.onnx")
    sizes = [(7, 400), (300, 31), (64, 64), (63, 200), (350, 149), (150, 352)]
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    arrays += [np.asarray(Image.open(path).convert("RGB")) for path in image_files() if path.name.startswith("rgb")]
    if int(PIL.__version__.partition(".")[0]) < 13:  # it begins with the width of these, the graph with their height
        size = processor.image_processor.size["shortest_edge"]
        arrays = [array for array in arrays if not height_is_first(array, size)]
    assert arrays
    for array in arrays:
        expected = processor(images=Image.fromarray(array), return_tensors="np").pixel_values
        (pixels,) = session.run(None, {"image": array})
        np.testing.assert_array_equal(pixels, expected, err_msg=str(array.shape))


def test_rgb_to_embedding_in_one_graph(exported, family, processor):
    import onnxruntime

    array = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    pixels = processor(images=Image.fromarray(array), return_tensors="np").pixel_values
    for name in ("vision_model", "vision_model_fp16", "vision_model_quantized"):
        whole, tower = (
            onnxruntime.InferenceSession(exported[family] / "onnx" / f"{name}{end}.onnx") for end in ("_rgb", "")
        )
        (actual,), (expected,) = whole.run(None, {"image": array}), tower.run(None, {"pixel_values": pixels})
        assert actual.shape == expected.shape
        assert relative(torch.from_numpy(actual), torch.from_numpy(expected)) < 1e-3


@pytest.mark.parametrize(("size", "levels"), [(224, 1), (288, 1), (336, 2), (384, 1), (448, 1)])
def test_the_preprocessing_for_openvino_is_hardly_off(size, levels, tmp_path):
    import openvino

    from hf_clip.export.preprocessing import write_preprocessing

    image_processor = HFCLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    write_preprocessing(image_processor.to_dict(), tmp_path / "graph.onnx", float64=False)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    graph = openvino.Core().compile_model(tmp_path / "graph.onnx", "CPU", settings)
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in [(300, 310), (225, 230), (48, 64)]]
    arrays += [np.asarray(Image.open(path).convert("RGB")) for path in image_files() if path.name.startswith("rgb")]
    scale = 255 * np.array(image_processor.image_std).reshape(3, 1, 1)
    if int(PIL.__version__.partition(".")[0]) < 13:
        arrays = [array for array in arrays if not height_is_first(array, size)]
    for array in arrays:
        expected = image_processor(images=Image.fromarray(array), return_tensors="np").pixel_values
        apart = np.abs(graph({"image": array})[0] - expected) * scale
        assert (apart < 0.01).mean() >= 0.9995, array.shape
        assert apart.max() < levels + 0.01, array.shape


def test_evaluation_compares_every_precision_with_the_model(repositories, tmp_path):
    source = repositories["tiny ViT"]
    for label in LABELS:
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index, image in enumerate(images(2)):
            image.save(tmp_path / "photos" / label / f"{index}.png")
    said: list[str] = []
    report = export_clip(
        source, tmp_path / "out", precisions=["fp32"], evaluation=tmp_path / "photos", report=said.append
    )
    assert report["evaluation"]["images"] == 4
    assert said[-1] == "fp32: accuracy 50.0% beside the model's 50.0%, agrees on 100.0%: good"
    assert report["evaluation"]["fp32"] == {"accuracy": 0.5, "agreement": 1.0, "good": True}
    with pytest.raises(ValueError, match="folders"):
        export_clip(source, tmp_path / "out2", evaluation=tmp_path / "photos" / LABELS[0])
    assert not (tmp_path / "out2").exists()


def test_a_missing_graph_or_device_is_one_sentence(exported, tmp_path):
    folder = exported["tiny ViT"]
    with pytest.raises(ValueError, match="cannot run on cuda"):
        load_clip(folder, device="cuda")
    with pytest.raises(ValueError, match=r"cannot compute in torch\.bfloat16: choose"):
        load_clip(folder, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="leave optimize off"):
        load_clip(folder, optimize=True)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / FILES["text"]).unlink()
    with pytest.raises(ValueError, match=r"text_model\.onnx is missing"):
        load_clip(copy)
    shutil.copy(folder / FILES["text"], copy / FILES["text"])
    (copy / FILES["vision"]).write_bytes(b"half")
    model, _ = load_clip(copy)  # a graph is opened where it is first used
    with pytest.raises(ValueError, match="cannot be opened"):
        model.encode_image(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("target", "files"),
    [
        (
            "fastembed",
            ["vision/model.onnx", "vision/preprocessor_config.json", "text/model.onnx", "text/tokenizer.json"],
        ),
        ("triton", ["vision/1/model.onnx", "vision/config.pbtxt", "text/1/model.onnx", "text/config.pbtxt"]),
        ("immich", ["visual/model.onnx", "visual/preprocess_cfg.json", "textual/model.onnx", "config.json"]),
    ],
)
def test_other_targets_hold_what_their_readers_open(target, files, repositories, tmp_path):
    import onnxruntime

    source = repositories["tiny ResNet"]
    report = export_clip(source, tmp_path / target, target=target, report=lambda _: None)
    for file in files:
        assert (tmp_path / target / file).is_file(), file
    assert all(row["relative_error_max"] < 1e-5 for row in report["files"].values())
    if target != "immich":
        load_clip(tmp_path / target)
    if target == "triton":
        for part in ("vision", "text"):
            assert_triton_reads(tmp_path / target / part / "config.pbtxt")
    if target != "immich":
        return
    session = onnxruntime.InferenceSession(tmp_path / target / "textual" / "model.onnx")
    (entry,), (result,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.shape, entry.type, result.name) == ("text", [1, 77], "tensor(int32)", "embedding")
    (embeds,) = session.run(None, {"text": np.array([[49406, 320, 49407, *[0] * 74]], np.int32)})
    assert np.linalg.norm(embeds) == pytest.approx(1)


def assert_triton_reads(file: Path) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    config = text_format.Parse(file.read_text(), ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == (file.parent.name, "onnxruntime", 64)
    assert config.HasField("dynamic_batching")


@torch.no_grad()
def test_fastembed_gives_the_embeddings(repositories, family, model, processor, tmp_path):
    from fastembed import ImageEmbedding, TextEmbedding

    out = tmp_path / "out"
    export_clip(repositories[family], out, target="fastembed", report=lambda _: None)
    texts = ["a cat", "a photo of a very small red dog, running", "x" * 500]
    reader = TextEmbedding("Qdrant/clip-ViT-B-32-text", specific_model_path=str(out / "text"), cuda=False)
    expected = embed_texts(model, processor, texts, truncation=True)
    assert torch.cosine_similarity(torch.tensor(np.array(list(reader.embed(texts)))), expected).min() > 0.9999

    files = [tmp_path / f"{place}.png" for place in range(3)]
    for file, image in zip(files, images(3), strict=True):
        image.save(file)
    reader = ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path=str(out / "vision"), cuda=False)
    expected = embed_images(model, processor, files)
    assert torch.cosine_similarity(torch.tensor(np.array(list(reader.embed(files)))), expected).min() > 0.9999


GROWTH = """
import sys, psutil, torch
from hf_clip import load_clip
model, _ = load_clip(sys.argv[1])
process, sizes = psutil.Process(), []
for number in range(40 * 49):  # without a common divisor: no shape comes twice
    ids = torch.full((1 + number % 40, 3 + number % 49), 320)
    ids[:, -1] = 49407
    model.encode_text(ids)
    if number % 490 == 489:
        sizes.append(process.memory_info().rss >> 20)
print(sizes[-1] - sizes[0])
"""


@pytest.mark.parametrize("runtime", ["exported", "openvino"])
def test_memory_stays_while_shapes_of_texts_change(request, runtime):
    folder = request.getfixturevalue(runtime)["tiny ViT"]
    command = [sys.executable, "-W", "ignore", "-c", GROWTH, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60, "MiB from 490 to 1,960 shapes"
