import json
import shutil
from pathlib import Path

import clip
import PIL
import pytest
import torch
from clip.clip import _transform
from PIL import Image
from safetensors.torch import load_file, save_file
from support.commands import run
from support.originals import ARCHITECTURES, FAMILIES, fresh_original_model, load_original
from transformers import AutoModel

from conversion.record_digests import SIZES, TEXTS
from hf_clip import HFCLIPConfig
from hf_clip.openai.checkpoints import read_checkpoint
from hf_clip.openai.convert import Layout, convert, make_processor
from hf_clip.openai.published import CHECKPOINTS, Checkpoint
from hf_clip.parity import golden, reference
from hf_clip.parity import verify as module
from hf_clip.parity.checks import (
    Check,
    Verdict,
    check_code,
    check_config,
    check_image_processor,
    check_outputs,
    check_tensors,
    check_tokenizer,
    skipped,
)
from hf_clip.parity.reference import PARITY, Reference, image_files, read_reference, tensor_sha256
from hf_clip.parity.verify import NotVerifiedError, check_verified, verify
from hf_clip.utils.files import file_sha256

OUTPUTS = ("image features", "text features", "logits")
ROWS = ("remote code", "config", "tensors", "image processor", "tokenizer", *OUTPUTS)
CARD = "before\n<!-- parity:start -->\nold\n<!-- parity:end -->\nafter\n"


@pytest.fixture(scope="module")
def verified(archives, repositories, tmp_path_factory) -> dict[str, tuple[Path, list[Check]]]:
    """By family: a sound folder with a card, and what its verification found."""
    found = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp("verified") / "folder"
        shutil.copytree(repositories[family], folder)
        (folder / "README.md").write_text(CARD)
        found[family] = folder, verify(folder, str(archives[family]), trust_original=True, report=lambda _: None)
    return found


@pytest.fixture
def folder(verified, family, tmp_path) -> Path:
    return shutil.copytree(verified[family][0], tmp_path / "folder")


@pytest.fixture
def original(verified, family) -> Reference:
    return Reference.from_json(check_verified(verified[family][0])["original"])


@pytest.fixture
def _quick(monkeypatch):
    """To load a tokenizer takes more than a second, and other tests do."""
    monkeypatch.setattr(module, "check_tokenizer", lambda *_: skipped("tokenizer", "not here"))


def verdicts(checks: list[Check]) -> dict[str, str]:
    return {row.name: row.verdict.value for row in checks}


# --- sound folders ----------------------------------------------------------------------------------------------------


def test_a_sound_folder_passes(verified, archives, family):
    folder, checks = verified[family]
    assert verdicts(checks) == dict.fromkeys(ROWS, "passed")
    assert {row.difference for row in checks if row.name in OUTPUTS} == {0.0}
    parity = check_verified(folder)
    assert parity["original"]["name"] == archives[family].name
    assert parity["original"]["sha256"] == file_sha256(archives[family])
    assert parity["files"].keys() == {file.name for file in folder.iterdir()} - {"README.md", "parity.json"}
    card = (folder / "README.md").read_text()
    assert card.startswith("before\n<!-- parity:start -->\n")
    assert card.endswith("\n<!-- parity:end -->\nafter\n")
    assert "| logits | passed | 2x18 numbers are bit-identical" in card
    assert "old" not in card


@pytest.mark.usefixtures("_quick")
def test_a_state_dict_has_no_graph(archives, folder, family, tmp_path):
    torch.save(read_checkpoint(archives[family]), tmp_path / "tuned.pt")
    checks = verify(folder, str(tmp_path / "tuned.pt"), trust_original=True)
    assert verdicts(checks) == dict.fromkeys(ROWS, "passed") | dict.fromkeys(("tokenizer", *OUTPUTS), "skipped")
    assert "tuned.pt is a state dict, with no graph to run" in checks[-1].detail


@pytest.mark.usefixtures("_quick")
def test_stock_folders(archives, tmp_path):
    archive = str(archives[FAMILIES[0]])
    convert(archive, tmp_path / "stock", layout=Layout.transformers)
    checks = verify(tmp_path / "stock", archive, trust_original=True)
    by_design = dict.fromkeys(("remote code", "image processor", "tokenizer"), "skipped")
    assert verdicts(checks) == dict.fromkeys(ROWS, "passed") | by_design
    assert "other pixels for some images by design" in checks[3].detail
    assert check_tokenizer(tmp_path / "stock", None).detail == "stock tokenizer: other ids for some texts by design"


@pytest.mark.usefixtures("_quick")
def test_the_nine_are_trusted_and_looked_for_in_the_cache(archives, verified, tmp_path, monkeypatch):
    folder, cache = shutil.copytree(verified[FAMILIES[0]][0], tmp_path / "folder"), tmp_path / "cache"
    cache.mkdir()
    shutil.copy(archives[FAMILIES[0]], cache / "tiny.pt")
    row = Checkpoint("tiny", "http://unused/tiny.pt", file_sha256(cache / "tiny.pt"), "clip-tiny")
    monkeypatch.setitem(CHECKPOINTS, "tiny", row)
    monkeypatch.setattr(module, "check_golden", lambda *_: [])
    lines = []
    for original in ("tiny", None):
        checks = verify(folder, original, cache_dir=cache, report=lines.append)
        assert verdicts(checks) == dict.fromkeys(ROWS, "passed") | {"tokenizer": "skipped"}
        assert check_verified(folder)["original"]["name"] == "tiny"
    assert lines.count(f"reading {cache / 'tiny.pt'}") == lines.count("running its graph") == 2
    (cache / "tiny.pt").unlink()
    verify(folder, cache_dir=cache, report=lines.append)
    assert lines[-2:] == ["comparing with what parity.json recorded of tiny", f"verifying {folder}"]


def test_code_of_other_files_is_not_run(archives, family, monkeypatch):
    monkeypatch.setattr(reference, "load", lambda *_, **__: pytest.fail("the archive was loaded"))
    found = read_reference(archives[family], "tiny.pt", trusted=False, report=print)
    assert not found.outputs
    assert found.no_outputs.endswith("to run its code, pass --trust-original")


# --- tampering --------------------------------------------------------------------------------------------------------


def edit_tensors(folder: Path, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, tower: str, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[tower].update(fields)
    (folder / "config.json").write_text(json.dumps(config))


def flip_bit(tensors: dict) -> None:
    tensors["text_model.encoder.layers.1.self_attn.v_proj.weight"].view(torch.int16)[3, 5] ^= 1


def swap(tensors: dict) -> None:
    one, other = (f"text_model.encoder.layers.{layer}.mlp.fc1.weight" for layer in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]


def widen(tensors: dict) -> None:
    tensors["text_projection.weight"] = tensors["text_projection.weight"].float()


def use_stock_processor(folder: Path) -> None:
    make_processor(HFCLIPConfig.from_pretrained(folder), Layout.transformers).save_pretrained(folder)


TAMPERING = {
    "a flipped bit": (
        lambda folder: edit_tensors(folder, flip_bit),
        check_tensors,
        "tensors differ: transformer.resblocks.1.attn.in_proj_weight has other bits",
    ),
    "swapped tensors": (
        lambda folder: edit_tensors(folder, swap),
        check_tensors,
        "tensors differ: transformer.resblocks.0.mlp.c_fc.weight has other bits; "
        "transformer.resblocks.1.mlp.c_fc.weight has other bits",
    ),
    "another dtype": (
        lambda folder: edit_tensors(folder, widen),
        check_tensors,
        "text_projection is float32 [64, 64], the original's float16 [64, 64]",
    ),
    "a missing tensor": (
        lambda folder: edit_tensors(folder, lambda tensors: tensors.pop("logit_scale")),
        check_tensors,
        "missing logit_scale",
    ),
    "an extra tensor": (
        lambda folder: edit_tensors(folder, lambda tensors: tensors.update(stray=torch.ones(3))),
        check_tensors,
        "unknown stray",
    ),
    "another epsilon": (
        lambda folder: edit_config(folder, "text_config", layer_norm_eps=1e-6),
        check_config,
        "text_config.layer_norm_eps is 1e-06, the original's is 1e-05",
    ),
    "another activation": (
        lambda folder: edit_config(folder, "text_config", hidden_act="gelu"),
        check_config,
        "text_config.hidden_act is gelu, the original's is quick_gelu",
    ),
    "another EOT": (
        lambda folder: edit_config(folder, "text_config", eos_token_id=2),
        check_config,
        "text_config.eos_token_id is 2, the original's is 49407",
    ),
    "another image size": (
        lambda folder: edit_config(folder, "vision_config", image_size=96),
        check_config,
        "vision_config.image_size is 96, the original's is ",
    ),
    "a stock image processor": (
        use_stock_processor,
        check_image_processor,
        "the folder names CLIPImageProcessor for HFCLIPImageProcessor; 12 of 12 images have other pixels",
    ),
    "a stock tokenizer": (
        use_stock_processor,
        check_tokenizer,
        "the folder names CLIPTokenizer for HFCLIPTokenizer; 14 of 40 texts have other ids: 'two “curly” quotes",
    ),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_named(what, folder, original):
    tamper, check, sentence = TAMPERING[what]
    tamper(folder)
    row = check(folder, original)
    assert row.verdict is Verdict.failed
    assert sentence in row.detail


def test_other_code_is_named(folder):
    (folder / "modeling_hf_clip.py").write_text("import os\n")
    (folder / "stray.py").write_text("import os\n")
    row = check_code(folder)
    assert row.verdict is Verdict.failed
    assert row.detail == "not as in the installed hf_clip: modeling_hf_clip.py; stray.py; convert again"


def test_other_features_fail(folder, original):
    edit_config(folder, "text_config", hidden_act="gelu")
    rows = check_outputs(AutoModel.from_pretrained(folder).eval(), original)
    assert verdicts(rows) == {"image features": "passed", "text features": "FAILED", "logits": "FAILED"}
    assert rows[1].difference > 1e-5
    assert "of the feature's norm, over 1e-05" in rows[1].detail
    edit_tensors(folder, lambda tensors: tensors["logit_scale"].fill_(float("nan")))
    assert verdicts(check_outputs(AutoModel.from_pretrained(folder).eval(), original))["logits"] == "FAILED"


@pytest.mark.usefixtures("_quick")
def test_without_the_original(folder, capsys):
    """From what parity.json recorded; a failure takes the place of the record that all passed."""
    assert run("verify", folder) == 0
    edit_tensors(folder, flip_bit)
    assert run("verify", folder) == 1
    assert "in_proj_weight" in "".join(capsys.readouterr().out.split())
    with pytest.raises(NotVerifiedError, match=r"folder failed its verification: tensors"):
        check_verified(folder)
    assert "| tensors | FAILED |" in (folder / "README.md").read_text()


@pytest.mark.usefixtures("_quick")
def test_a_folder_that_does_not_load(verified, tmp_path):
    folder = shutil.copytree(verified[FAMILIES[0]][0], tmp_path / "folder")
    (folder / "model.safetensors").write_bytes(b"nonsense")
    (folder / "config.json").write_text("{")
    checks = verify(folder)
    assert verdicts(checks) == dict.fromkeys(("config", "tensors", "image processor", "model"), "FAILED") | {
        "remote code": "passed",
        "tokenizer": "skipped",
    }
    assert all("\n" not in row.detail for row in checks)


# --- what publishing asks ---------------------------------------------------------------------------------------------


def test_changes_since(verified, tmp_path):
    folder = shutil.copytree(verified[FAMILIES[0]][0], tmp_path / "folder")
    for name in ("README.md", ".gitattributes"):
        (folder / name).write_text("free to change")
    assert check_verified(folder)["checks"][1]["name"] == "config"
    edit_config(folder, "text_config", layer_norm_eps=1e-6)
    (folder / "tokenizer.json").rename(folder / "vocabulary.json")
    with pytest.raises(
        NotVerifiedError, match=r"\(changed config.json; added vocabulary.json; removed tokenizer.json\): verify it"
    ):
        check_verified(folder)


BAD_USE = {
    "has no parity.json that names its original: pass --original": lambda folder: (folder / "parity.json").unlink(),
    "was not written by this version of verify": lambda folder: (folder / "parity.json").write_text('{"format": 0}'),
    "parity.json does not record the original": lambda folder: (folder / "parity.json").write_text(
        '{"format": 1, "original": {}, "checks": [], "files": {}}'
    ),
    "is no converted folder: it has no config.json": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("message", BAD_USE)
def test_bad_use(message, verified, tmp_path, capsys):
    folder = shutil.copytree(verified[FAMILIES[0]][0], tmp_path / "folder")
    BAD_USE[message](folder)
    assert run("verify", folder) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    with pytest.raises(NotVerifiedError):
        check_verified(folder)


# --- published numbers ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_golden_numbers(archives, verified, tmp_path, monkeypatch):
    folder, model = verified[FAMILIES[0]][0], load_original(archives[FAMILIES[0]])
    image, texts = Image.open(PARITY / "images" / "rgb.png"), ["a diagram", "a dog"]
    per_image, _ = model(_transform(model.visual.input_resolution)(image)[None], clip.tokenize(texts))
    probabilities = per_image.softmax(-1)

    def example(name: str, file: str, expected: torch.Tensor) -> dict:
        images = {file: f"http://127.0.0.1:9/{file}"}
        how = {
            "checkpoint": "tiny",
            "measure": "probabilities",
            "mode": None,
            "rtol": 0,
            "atol": 1e-3,
            "source": "a book",
        }
        return how | {"name": name, "images": images, "texts": texts, "expected": expected.tolist()}

    examples = [
        example("sound", "rgb.png", probabilities),
        example("off", "rgb.png", probabilities + 0.01),
        example("no file", "absent.png", probabilities),
    ]
    parameters = {
        "value": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        "unit": 10**6,
        "source": "a book",
    }
    content = {"parameters": {"tiny": parameters}, "examples": examples}
    monkeypatch.setattr(golden, "PARITY", tmp_path)
    ours = AutoModel.from_pretrained(folder).eval()

    def found(images: Path | None) -> list[Check]:
        (tmp_path / "golden.json").write_text(json.dumps(content))
        return golden.check_golden(ours, folder, "tiny", images)

    count, *rows = found(PARITY / "images")
    assert count.verdict is Verdict.passed
    assert verdicts(rows) == {"sound": "passed", "off": "FAILED", "no file": "skipped"}
    assert rows[1].detail == "probabilities are off by 1.0e-02 from those published (a book)"
    parameters["value"] += 0.01
    count, *rows = found(None)
    assert count.verdict is Verdict.failed
    assert all(row.verdict is Verdict.skipped for row in rows)
    assert all(row.detail.endswith(": pass --golden-images DIR") for row in rows)


@pytest.mark.slow
def test_published_parameters():
    published = json.loads((PARITY / "golden.json").read_text())["parameters"]
    assert published.keys() == CHECKPOINTS.keys()
    for name, row in published.items():
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in fresh_original_model(name).parameters())
        assert round(count / row["unit"], 2) == row["value"], name


# --- the fixed inputs -------------------------------------------------------------------------------------------------


def test_recorded_pixels_are_the_original_s():
    """Of the installed Pillow, and of no other image."""
    recorded = json.loads((PARITY / "pixels.json").read_text())
    assert {int(size) for size in recorded} == set(SIZES) >= {arch[1] for arch in ARCHITECTURES.values()}
    for size in SIZES:
        digests = {path.name: tensor_sha256(_pixels(path, size)) for path in image_files()}
        assert recorded[str(size)].keys() == digests.keys()
        for name, digest in digests.items():
            assert digest in recorded[str(size)][name].values(), (size, name, PIL.__version__)


def _pixels(path: Path, size: int) -> torch.Tensor:
    with reference.open_fixed_image(path) as image:
        return _transform(size)(image)


def test_recorded_ids_are_the_original_s():
    rows = json.loads((PARITY / "texts.json").read_text())
    assert [row["text"] for row in rows] == TEXTS
    for row, ids in zip(rows, clip.tokenize(TEXTS, truncate=True).tolist(), strict=True):
        assert row["ids"] + [0] * (77 - len(row["ids"])) == ids
    assert rows[0] == {"text": "Hello World!", "ids": [49406, 3306, 1002, 256, 49407]}
