import contextlib
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from clip.model import CLIP
from safetensors.torch import load_file, save_file
from support.commands import run
from support.originals import FAMILIES, inputs, load_original, original_model
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, CLIPModel, CLIPProcessor, pipeline

from hf_clip import HFCLIPImageProcessor, HFCLIPModel, HFCLIPProcessor, HFCLIPTokenizer, load_clip
from hf_clip.openai import convert as module
from hf_clip.openai.checkpoints import read_checkpoint
from hf_clip.openai.convert import SENTENCE_TRANSFORMERS, DType, Layout, convert, load_checkpoint
from hf_clip.openai.key_mapping import to_hf
from hf_clip.openai.to_openai import to_openai


def test_stores_every_tensor_as_it_was(archives, repositories, family):
    original = read_checkpoint(archives[family])
    expected = to_hf(original, HFCLIPModel.from_pretrained(repositories[family]).config)
    stored = load_file(repositories[family] / "model.safetensors")
    assert stored.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(stored[key], tensor), key
        assert stored[key].dtype == tensor.dtype, key


def test_a_repository_is_whole(repositories, family):
    repository = repositories[family]
    assert isinstance(AutoModel.from_pretrained(repository), HFCLIPModel)
    processor = AutoProcessor.from_pretrained(repository)
    assert isinstance(processor, HFCLIPProcessor)
    assert isinstance(AutoTokenizer.from_pretrained(repository), HFCLIPTokenizer)
    image_processor = AutoImageProcessor.from_pretrained(repository)
    assert type(image_processor) is type(processor.image_processor) is HFCLIPImageProcessor
    size = original_model(family).visual.input_resolution
    assert image_processor.crop_size == {"height": size, "width": size}
    assert image_processor.size == {"shortest_edge": size}
    saved = json.loads((repository / "config.json").read_text())
    assert saved["architectures"] == ["HFCLIPModel"]
    assert saved["dtype"] == "float32"


def test_permissions_are_the_usual(repositories, family):
    umask = os.umask(0)
    os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in repositories[family].iterdir()} == {0o666 & ~umask}


def test_pipeline_gives_the_original_s_probabilities(archives, repositories, family, tmp_path):
    import clip
    from PIL import Image

    image = Image.effect_noise((97, 71), 90).convert("RGB")
    labels = ["a cat", "a dog", "two curly “quotes”"]
    classifier = pipeline("zero-shot-image-classification", model=str(repositories[family]))
    results = classifier(image, candidate_labels=labels, hypothesis_template="a photo of {}.")
    model, preprocess = clip.load(str(archives[family]), device="cpu")
    with torch.no_grad():
        texts = clip.tokenize([f"a photo of {label}." for label in labels])
        expected = model(preprocess(image)[None], texts)[0].softmax(-1)[0]
    scores = {result["label"]: result["score"] for result in results}
    torch.testing.assert_close(torch.tensor([scores[label] for label in labels]), expected, rtol=1e-5, atol=1e-6)


def test_safetensors_and_fine_tunes_convert_alike(archives, repositories, family, tmp_path):
    state_dict = {key: tensor.contiguous() for key, tensor in read_checkpoint(archives[family]).items()}
    save_file(state_dict, tmp_path / "original.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state_dict.items()}}, tmp_path / "tuned.pt")
    expected = load_file(repositories[family] / "model.safetensors")
    for source in ("original.safetensors", "tuned.pt"):
        convert(str(tmp_path / source), tmp_path / "output", force=True)
        stored = load_file(tmp_path / "output" / "model.safetensors")
        assert stored.keys() == expected.keys()
        assert all(torch.equal(stored[key], expected[key]) for key in expected)


def test_stock_layout(archives, tmp_path):
    """transformers' own classes load it; so do ours, to the bit."""
    archive = archives[FAMILIES[0]]
    convert(str(archive), tmp_path / "stock", layout=Layout.transformers)
    stock, report = CLIPModel.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not any(report.values())
    assert isinstance(CLIPProcessor.from_pretrained(tmp_path / "stock"), CLIPProcessor)
    original = load_original(archive)
    pixels, ids = inputs(original_model(FAMILIES[0]))
    with torch.no_grad():
        expected = original(pixels, ids)[0]
        ours = HFCLIPModel.from_pretrained(tmp_path / "stock").eval()(ids, pixels).logits_per_image
        theirs = stock.eval()(input_ids=ids, pixel_values=pixels).logits_per_image
    assert torch.equal(ours, expected)
    torch.testing.assert_close(theirs, expected)


@pytest.mark.parametrize("dtype", [DType.float32, DType.float16, DType.bfloat16])
def test_dtypes(archives, repositories, family, dtype, tmp_path):
    convert(str(archives[family]), tmp_path / "output", dtype=dtype)
    stored = load_file(tmp_path / "output" / "model.safetensors")
    loaded = HFCLIPModel.from_pretrained(repositories[family], dtype=getattr(torch, dtype.value))
    assert {key: tensor.dtype for key, tensor in stored.items()} == {
        key: tensor.dtype for key, tensor in loaded.state_dict().items()
    }
    assert HFCLIPModel.from_pretrained(tmp_path / "output").dtype == getattr(torch, dtype.value)


def test_a_card_becomes_the_readme(archives, tmp_path):
    (tmp_path / "clip-tiny.md").write_text("the card")
    convert(str(archives[FAMILIES[0]]), tmp_path / "output", card=tmp_path / "clip-tiny.md")
    assert (tmp_path / "output" / "README.md").read_text() == "the card"


def channels_last(tensors):
    return {key: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for key, t in tensors.items()}


def transposed(tensors):
    return {key: t.T.contiguous().T if t.ndim == 2 else t for key, t in tensors.items()}


def expanded(tensors):
    names = [key for key in tensors if key.endswith(("ln_final.weight", "bn1.running_var", "ln_pre.bias"))]
    return tensors | {key: tensors[key][:1].clone().expand(tensors[key].shape) for key in names}


def tied(tensors):
    return tensors | {"transformer.resblocks.0.ln_2.weight": tensors["ln_final.weight"]}


def views(tensors):
    """Of one buffer, as optimizers that flatten their parameters save them."""
    flat = torch.cat([t.reshape(-1).float() for t in tensors.values()])
    parts = flat.split([t.numel() for t in tensors.values()])
    return {key: part.view(t.shape) for (key, t), part in zip(tensors.items(), parts, strict=True)}


@pytest.mark.parametrize("form", [channels_last, transposed, expanded, tied, views], ids=lambda form: form.__name__)
def test_storages_of_every_form_convert(form, family, tmp_path):
    """Fine-tunes have them; safetensors, which is written, has none of them."""
    tensors = form(original_model(family).state_dict())
    torch.save(tensors, tmp_path / "tuned.pt")
    convert(str(tmp_path / "tuned.pt"), tmp_path / "out", report=lambda _: None)
    config = HFCLIPModel.from_pretrained(tmp_path / "out").config
    expected = to_hf({key: t.contiguous() for key, t in tensors.items()}, config)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[key], expected[key]) for key in expected)
    loaded, _ = load_checkpoint(tmp_path / "tuned.pt", report=lambda _: None)
    assert all(t.is_contiguous() for t in loaded.state_dict().values())
    pixels, ids = inputs(original_model(family))
    with torch.no_grad():
        ours = loaded.eval()(ids, pixels).logits_per_image
        assert torch.equal(ours, HFCLIPModel.from_pretrained(tmp_path / "out").eval()(ids, pixels).logits_per_image)
    to_openai(tmp_path / "out", tmp_path / "back.pt", report=lambda _: None)
    back = read_checkpoint(tmp_path / "back.pt")
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


# --- bad input --------------------------------------------------------------------------------------------------------


def another_model(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def renamed_tensor(path: Path) -> None:
    state_dict = original_model(FAMILIES[0]).state_dict()
    state_dict["ln_final.scale"] = state_dict.pop("ln_final.weight")
    torch.save(state_dict, path)


def executable_pickle(path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return os.mkdir, (f"{path}.executed",)

    torch.save({"state_dict": Payload()}, path)


def zip_without_checkpoint(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")


BAD_FILES = {
    "is empty": lambda path: path.write_bytes(b""),
    "is a web page": lambda path: path.write_text("<!DOCTYPE html><html></html>"),
    "neither a TorchScript archive": lambda path: path.write_bytes(bytes(range(7, 250)) * 9),
    "without a checkpoint in it": zip_without_checkpoint,
    "not only tensors": executable_pickle,
    "no tensor 'text_projection'": another_model,
    "missing ln_final.weight": renamed_tensor,
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_files(message, tmp_path, capsys):
    source, output = tmp_path / "bad.pt", tmp_path / "output"
    BAD_FILES[message](source)
    assert run("convert", source, "--output", output) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert str(source) in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == ["bad.pt"]


def test_truncated_archive(archives, family, tmp_path, capsys):
    content = archives[family].read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    assert run("convert", tmp_path / "cut.pt", "--output", tmp_path / "output") == 1
    assert "cut short or damaged" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["cut.pt"]


def test_resnets_have_no_stock_layout(archives, tmp_path, capsys):
    assert run("convert", archives[FAMILIES[1]], "-o", tmp_path / "output", "--layout", "transformers") == 1
    assert "transformers has no CLIP ResNet" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_existing_output(archives, family, tmp_path, capsys):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "precious.txt").write_text("mine")
    assert run("convert", archives[family], "--output", tmp_path / "output") == 1
    assert "output exists: choose another output, or pass --force" in capsys.readouterr().err
    assert os.listdir(tmp_path / "output") == ["precious.txt"]
    assert run("convert", archives[family], "--output", tmp_path / "output", "--force") == 0
    assert "precious.txt" not in os.listdir(tmp_path / "output")
    assert os.listdir(tmp_path) == ["output"]


def test_a_failure_while_writing_leaves_the_old_output(archives, family, tmp_path, monkeypatch):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "precious.txt").write_text("mine")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="output cannot be written: there is no room for it"):
        convert(str(archives[family]), tmp_path / "output", force=True)
    assert os.listdir(tmp_path / "output") == ["precious.txt"]
    assert os.listdir(tmp_path) == ["output"]


def test_unwritable_output(archives, family, tmp_path, capsys):
    blocker = tmp_path / "file"
    blocker.write_text("no folder")
    assert run("convert", archives[family], "--output", blocker / "output") == 1
    assert f"output cannot be written: {blocker} is not a folder" in capsys.readouterr().err
    assert blocker.read_text() == "no folder"


def test_help_teaches(capsys):
    for command in ("convert", "to-openai"):
        with contextlib.suppress(SystemExit):
            run(command, "--help")
        assert f"hf-clip {command}" in capsys.readouterr().out


# --- without a folder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_loading_a_file_equals_converting_and_loading_the_folder(archives, repositories, family, dtype):
    ours = load_checkpoint(archives[family], dtype=dtype)[0]
    expected = HFCLIPModel.from_pretrained(repositories[family], **({} if dtype is None else {"dtype": dtype}))
    assert not ours.training
    tensors, wanted = ours.state_dict(), expected.state_dict()
    assert {key: tensor.dtype for key, tensor in tensors.items()} == {key: t.dtype for key, t in wanted.items()}
    assert all(torch.equal(tensors[key], tensor) for key, tensor in wanted.items())
    settings, wanted = ours.config.to_diff_dict(), expected.config.to_diff_dict()
    assert settings == {key: value for key, value in wanted.items() if key != "auto_map"}


def test_a_loaded_file_saves_what_converting_writes(archives, repositories, family, tmp_path):
    model, processor = load_checkpoint(archives[family], dtype=torch.float16)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    saved, converted = ({file.name for file in folder.iterdir()} for folder in (tmp_path, repositories[family]))
    assert not saved & SENTENCE_TRANSFORMERS.keys()
    assert saved | SENTENCE_TRANSFORMERS.keys() == converted
    stored, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path, repositories[family]))
    assert stored.keys() == wanted.keys()
    assert all(torch.equal(stored[key], tensor) for key, tensor in wanted.items())
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (repositories[family] / name).read_text(), name


def test_a_model_from_a_file_outlives_it(archives, family, tmp_path):
    copy = tmp_path / "copy.pt"
    copy.write_bytes(archives[family].read_bytes())
    model, _ = load_checkpoint(copy, dtype=torch.float16)
    expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    copy.write_bytes(bytes(copy.stat().st_size))
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_batch_norms_without_their_count_load(archives, tmp_path):
    state_dict = read_checkpoint(archives["tiny ResNet"])
    torch.save({key: t for key, t in state_dict.items() if "num_batches_tracked" not in key}, tmp_path / "x.pt")
    model, _ = load_checkpoint(tmp_path / "x.pt")
    assert model.vision_model.stem.bn1.num_batches_tracked == 0


def test_the_stock_layout_has_the_image_settings_where_older_programs_look(archives, repositories, tmp_path):
    convert(str(archives["tiny ViT"]), tmp_path / "stock", layout=Layout.transformers)
    settings = json.loads((tmp_path / "stock" / "preprocessor_config.json").read_text())
    assert settings["image_processor_type"] == "CLIPImageProcessor"
    assert settings["crop_size"] == {"height": 32, "width": 32}
    # a hf_clip folder must not let AutoImageProcessor choose the stock class
    assert not (repositories["tiny ViT"] / "preprocessor_config.json").exists()


def test_a_long_clip_gets_one_table_of_positions(tmp_path):
    """Its own forward adds two tables under masks, which here the original's code does with their sum."""
    positions, kept = 248, 20
    torch.manual_seed(0)
    original = CLIP(64, 32, 2, 64, 8, positions, 49408, 64, 1, 2).eval()
    tables = torch.randn(2, positions, 64)
    first = (torch.arange(positions) < kept).float()[:, None]
    original.positional_embedding.data = tables[0] * first + tables[1] * (1 - first)
    state = original.state_dict() | {"positional_embedding": tables[0], "positional_embedding_res": tables[1]}
    torch.save(state, tmp_path / "longclip.pt")
    convert(tmp_path / "longclip.pt", tmp_path / "out", report=lambda _: None)
    model, processor = load_clip(tmp_path / "out")
    texts = ["a cat", "a very long caption " * 55]
    ids = processor(text=texts, return_tensors="pt").input_ids
    assert ids.shape == (2, 222)
    padded = torch.nn.functional.pad(ids, (0, positions - ids.shape[1]))
    with torch.no_grad():
        assert torch.equal(model.encode_text(padded), original.encode_text(padded))
        torch.testing.assert_close(model.encode_text(ids), original.encode_text(padded), rtol=0, atol=1e-6)
    assert processor.tokenizer.model_max_length == positions
