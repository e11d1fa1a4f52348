"""The nine model cards: as rendered, valid metadata, numbers that are true, code that runs."""

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from support.originals import fresh_original_model
from transformers import dynamic_module_utils

from hf_clip import HFCLIPVisionConfig
from hf_clip.openai.infer_config import infer_config
from hf_clip.openai.published import CHECKPOINTS
from model_cards import render

CARDS = render.FOLDER
DATA = render.load_data()
EXAMPLES = {"tiny ViT": "clip-vit-base-patch32", "tiny ResNet": "clip-rn50"}


def read_card(repo_name: str) -> str:
    return (CARDS / f"{repo_name}.md").read_text(encoding="utf-8")


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# --- rendering --------------------------------------------------------------------------------------------------------


def test_one_card_for_each_checkpoint_as_rendered():
    files = {file.name: file.read_text(encoding="utf-8") for file in CARDS.glob("*.md") if file.name != "template.md"}
    assert files == render.render_cards(DATA)
    assert files.keys() == {f"{checkpoint.repo_name}.md" for checkpoint in CHECKPOINTS.values()}


def test_check_names_what_render_repairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(render, "CHECKPOINTS", {name: CHECKPOINTS[name] for name in ("RN50", "RN101", "RN50x4")})
    monkeypatch.setattr(render, "FOLDER", tmp_path)
    for name in ("template.md", "checkpoints.json", "clip-rn50x4.md"):
        shutil.copy(CARDS / name, tmp_path)
    (tmp_path / "clip-rn50.md").write_text("edited", encoding="utf-8")
    (tmp_path / "clip-rn51.md").write_text("orphan", encoding="utf-8")
    with pytest.raises(SystemExit, match=r": clip-rn101\.md, clip-rn50\.md, clip-rn51\.md; run"):
        render.main(check=True)
    assert (tmp_path / "clip-rn50.md").read_text(encoding="utf-8") == "edited"
    render.main()
    render.main(check=True)
    written = {file.name: file.read_bytes() for file in tmp_path.glob("clip-*")}
    assert written == {
        f"clip-{name}.md": (CARDS / f"clip-{name}.md").read_bytes() for name in ("rn50", "rn101", "rn50x4")
    }


# --- content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_metadata_survives_huggingface_hub(name: str):
    repo_name = CHECKPOINTS[name].repo_name
    card = ModelCard.load(CARDS / f"{repo_name}.md")
    assert str(card) == read_card(repo_name)
    assert card.data.model_name == repo_name
    assert card.data.eval_results == list(render.published_results(DATA["checkpoints"][name], DATA))
    assert len({(result.unique_identifier, result.metric_type) for result in card.data.eval_results}) == 38 + 12 + 2
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    assert (card.data.license, card.data.license_link) == ("other", DATA["sources"]["model_card"]["url"])


def test_data_sets_have_their_ids_on_the_hub():
    """As clip-benchmark, which measures them, names its own; the others are not there under one name."""
    types = {row.dataset_name: row.dataset_type for row in render.published_results(DATA["checkpoints"]["RN50"], DATA)}
    others = {name for name, kind in types.items() if not re.fullmatch(r"clip-benchmark/wds_[\w-]+", kind)}
    assert others == {"WinoGAViL", "iWildCam", "Camelyon17", "FMoW", "Dollar Street", "GeoDE"}
    assert len(set(types.values())) == len(types)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_names_the_original_file_and_only_known_addresses(name: str):
    checkpoint = CHECKPOINTS[name]
    text = read_card(checkpoint.repo_name)
    assert f"<{checkpoint.url}>" in text
    assert f"`{checkpoint.sha256}`" in text
    known = {source["url"] for source in DATA["sources"].values()} | {checkpoint.url}
    assert set(re.findall(r"(?<![+\w])\w+://[^\s)>\"`]+", text)) <= known
    assert set(re.findall(r"[\w-]+/clip-[\w-]+", text)) == {f"{DATA['organization']}/{checkpoint.repo_name}"}
    assert re.search(r"^<!-- parity:start -->\n.+\n<!-- parity:end -->$", text, re.MULTILINE)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_sizes_are_those_of_the_architecture(name: str):
    with torch.device("meta"):
        original = fresh_original_model(name)
    config = infer_config(original.state_dict())
    vision, text = config.vision_config, config.text_config
    total = sum(parameter.numel() for parameter in original.parameters())
    image = sum(parameter.numel() for parameter in original.visual.parameters())
    if isinstance(vision, HFCLIPVisionConfig):
        architecture, width = f"ViT, patches of {vision.patch_size} × {vision.patch_size}", f"{vision.hidden_size}"
        layers, heads = f"{vision.num_hidden_layers}", f"{vision.num_attention_heads}"
    else:
        architecture, width = "modified ResNet", f"{vision.width} after the stem, {vision.hidden_size} at the end"
        layers, heads = f"{' + '.join(map(str, vision.depths))} bottlenecks", f"{vision.num_attention_heads} (pooling)"
    card = read_card(CHECKPOINTS[name].repo_name)
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", card, re.MULTILINE))
    expected = {
        "input": f"{vision.image_size} × {vision.image_size} pixels | up to {text.max_position_embeddings} tokens",
        "architecture": f"{architecture} | causal Transformer",
        "layers": f"{layers} | {text.num_hidden_layers}",
        "width": f"{width} | {text.hidden_size}",
        "attention heads": f"{heads} | {text.num_attention_heads}",
        "embedding": f"{config.projection_dim} | {config.projection_dim}",
        "parameters": f"{image:,} | {total - image - 1:,}",
    }
    assert {key: rows.get(key) for key in expected} == expected
    assert f"Together {total:,} parameters, the logit scale included," in card
    assert f"one space of\n{config.projection_dim} dimensions" in card
    shapes = [f"({batch}, {config.projection_dim})" for batch in (1, 2)]
    assert re.findall(r"_features = .*# (.+)", card) == shapes * 2


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_numbers_agree_with_each_other(name: str):
    row = DATA["checkpoints"][name]
    assert row["gflops"] == pytest.approx(row["image"]["gflops"] + row["text"]["gflops"], abs=0.011)
    assert row["zero_shot"].keys() == DATA["datasets"].keys()
    assert row["average"] == pytest.approx(sum(row["zero_shot"].values()) / len(row["zero_shot"]), abs=6e-5)
    for dataset, recalls in row["retrieval"].items():
        assert row["zero_shot"][dataset] == pytest.approx((recalls["image"][0] + recalls["text"][0]) / 2, abs=6e-5)
    # the same data set, measured by others: with other prompts, or another crop of it
    assert row["imagenet_v2"][0] == pytest.approx(100 * row["zero_shot"]["ImageNet v2"], abs=1)
    assert row["paper"]["SUN397"] == pytest.approx(100 * row["zero_shot"]["SUN397"], abs=2.5)
    assert row["paper"].get("ImageNet", 0) in (0, pytest.approx(100 * row["zero_shot"]["ImageNet 1k"], abs=0.5))


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remote_code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for both families: a process imports it as a package once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
            patch.delitem(sys.modules, name)  # of another cache
        patch.setattr(sys, "path", list(sys.path))  # transformers appends its cache
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield
        # a package that lies in this cache would hide the other's from later tests of the process
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
            del sys.modules[name]


@pytest.mark.usefixtures("remote_code_cache")
def test_code_in_the_cards_runs(
    family: str, repositories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    photo = tmp_path / "photo.jpg"
    Image.radial_gradient("L").resize((97, 65)).convert("RGB").save(photo)
    replaced = {
        f'"{DATA["organization"]}/{EXAMPLES[family]}"': repr(str(repositories[family])),
        '"photo.jpg"': repr(str(photo)),
    }
    namespaces, printed = [], []
    for code in code_blocks(read_card(EXAMPLES[family]), "python"):
        for old, new in replaced.items():
            assert old in code
            code = code.replace(old, new)
        namespaces.append({})
        exec(code, namespaces[-1])
        printed.append(capsys.readouterr().out)
    scores = {answer["label"]: answer["score"] for answer in ast.literal_eval(printed[0])}
    assert scores.keys() == {"a cat", "a dog"}
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
    _, auto, drop_in = namespaces
    assert torch.equal(auto["image_features"], drop_in["image_features"])
    # the tokenizers pad to different lengths
    torch.testing.assert_close(auto["text_features"], drop_in["text_features"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(auto["probabilities"], drop_in["logits_per_image"].softmax(-1), rtol=1e-4, atol=1e-5)
    assert printed[1] == f"{auto['probabilities']}\n"


@pytest.mark.parametrize("repo_name", EXAMPLES.values())
def test_commands_in_the_cards_are_up_to_date(repo_name: str):
    text = read_card(repo_name)
    dependencies = re.findall(r'"(\w+>=[\d.]+)"', "".join(code_blocks(text, "bash")))
    assert [dependency.split(">")[0] for dependency in dependencies] == ["transformers", "torch"]
    project = (CARDS.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{dependency}"' in project for dependency in dependencies)
    assert ("--layout transformers" in text) == ("vit" in repo_name)
