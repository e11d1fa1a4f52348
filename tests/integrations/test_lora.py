"""LoRA through the trainer and the commands, on both families."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import run
from support.data_sets import captions, class_folders, write_csv
from support.originals import FAMILIES, inputs, load_original, original_model
from support.training import changed, make_trainer, tensors
from transformers import CLIPModel

from hf_clip import HFCLIPConfig, HFCLIPModel, HFCLIPResNetConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from hf_clip.openai.to_openai import to_openai
from hf_clip.training.adapters import add_lora, merged
from hf_clip.training.interpolation import interpolate

pytestmark = [pytest.mark.integration, pytest.mark.training]
DOCS = Path(__file__).parents[2] / "docs" / "finetune.md"


@pytest.fixture
def batch(family: str) -> dict[str, torch.Tensor]:
    pixels, ids = inputs(original_model(family), images=3, texts=3)
    return {"input_ids": ids, "pixel_values": pixels}


@pytest.fixture
def trainer(family: str, repositories: dict[str, Path], tmp_path: Path):
    model = add_lora(HFCLIPModel.from_pretrained(repositories[family]), rank=2)
    trainer = make_trainer(repositories[family], tmp_path / "run", model, learning_rate=1e-2, max_steps=4)
    before = tensors(model)
    trainer.train()
    assert all("lora_" in name for name in changed(before, model))
    assert changed(before, model)
    return trainer


@torch.no_grad()
def test_an_adapter_is_trained_saved_and_merged(family, repositories, trainer, batch, tmp_path):
    expected = trainer.model.eval()(**batch)
    trainer.save_model(str(tmp_path / "adapter"))
    merged_model = merged(HFCLIPModel.from_pretrained(repositories[family]), tmp_path / "adapter").eval()
    assert type(merged_model) is HFCLIPModel
    found = merged_model(**batch)
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_merged_model_goes_back_to_the_original(family, repositories, trainer, batch, tmp_path):
    trainer.save_model(str(tmp_path / "adapter"))
    assert run("merge", repositories[family], tmp_path / "adapter", "--output", tmp_path / "one", "--alpha", 1) == 0
    to_openai(tmp_path / "one", tmp_path / "one.pt")
    original = load_original(tmp_path / "one.pt")
    # the original rounds to its mix of fp16 and fp32 as it loads
    ours = HFCLIPModel.from_pretrained(tmp_path / "one", dtype=torch.float16).float().eval()
    assert torch.equal(ours.encode_image(batch["pixel_values"]), original.encode_image(batch["pixel_values"]))
    ids = torch.nn.functional.pad(batch["input_ids"], (0, original.context_length - batch["input_ids"].shape[1]))
    assert torch.equal(ours.encode_text(batch["input_ids"]), original.encode_text(ids))
    if family == FAMILIES[0]:
        exact = HFCLIPModel.from_pretrained(tmp_path / "one").eval()
        stock = CLIPModel.from_pretrained(tmp_path / "one").eval()
        torch.testing.assert_close(stock(**batch).image_embeds, exact(**batch).image_embeds, rtol=0, atol=1e-6)


@torch.no_grad()
def test_interpolation_is_a_smaller_scale_of_the_adapter(family, repositories, trainer, batch):
    from peft.helpers import rescale_adapter_scale

    with rescale_adapter_scale(trainer.model.eval(), 0.5):
        expected = trainer.model(**batch)
    found = interpolate(HFCLIPModel.from_pretrained(repositories[family]).eval(), trainer.model, 0.5)(**batch)
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=0, atol=1e-6)


def test_parts_are_not_chosen_beside_an_adapter(repositories, tmp_path):
    model = add_lora(HFCLIPModel.from_pretrained(repositories["tiny ViT"]))
    with pytest.raises(ValueError, match="an adapter chooses what is trained"):
        make_trainer(repositories["tiny ViT"], tmp_path, model, train="image")


def test_mini_batches_replay_the_dropout_of_adapters(repositories, tmp_path):
    """Two runs of one seed end alike, and other sizes of mini-batches draw other masks."""
    found = []
    for size in (2, 2, 4):
        torch.manual_seed(0)
        model = add_lora(HFCLIPModel.from_pretrained(repositories["tiny ViT"]), rank=2, dropout=0.5)
        make_trainer(repositories["tiny ViT"], tmp_path, model, mini_batch_size=size, learning_rate=1e-2).train()
        found.append(model)
    assert changed(tensors(found[0]), found[1]) == set()
    assert changed(tensors(found[0]), found[2])


SIZES = {
    "ViT-B/32": HFCLIPConfig(text_config=HFCLIPTextConfig().to_dict(), vision_config=HFCLIPVisionConfig().to_dict()),
    "RN50": HFCLIPConfig(
        text_config=HFCLIPTextConfig(projection_dim=1024).to_dict(),
        vision_config=HFCLIPResNetConfig(projection_dim=1024).to_dict(),
    ),
}


@pytest.mark.parametrize("size", SIZES)
def test_less_than_a_hundredth_of_the_parameters_is_trained(size: str):
    with torch.device("meta"):
        model = add_lora(HFCLIPModel(SIZES[size]), rank=8)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert 0 < trained < 0.01 * sum(parameter.numel() for parameter in model.parameters())


def test_the_commands_of_the_page_run(repositories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(class_folders(Path("animals")) / "pairs.csv", captions(Path("animals")))
    Path("clip-vit-base-patch32").symlink_to(repositories["tiny ViT"])
    block = next(block for block in re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL) if "lora" in block)
    for line in block.splitlines():
        assert run(*shlex.split(line)[1:]) == 0
    assert (tmp_path / "lora" / "adapter_config.json").is_file()
    HFCLIPModel.from_pretrained(tmp_path / "lora-merged")


def test_an_adapter_is_merged_into_its_own_model_alone_and_whole(repositories, tmp_path, capsys):
    """A ResNet took the text half of a ViT's adapter, and without --alpha half of an adapter was merged."""
    vit, resnet = repositories["tiny ViT"], repositories["tiny ResNet"]
    folder = class_folders(tmp_path / "animals", each=4)
    options = ("--train", "lora", "--lr", "1e-2", "--epochs", "2", "--batch-size", "4", "--workers", "0")
    for name in ("one", "again"):
        assert run("finetune", folder, "--model", vit, "--output", tmp_path / name, *options) == 0
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "again")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())  # one seed
    known = json.loads((tmp_path / "one" / "training.json").read_text())["settings"]
    assert {name: known[name] for name in known if "lora" in name} == {
        "lora_rank": 8,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "lora_targets": "(text|vision)_model\\..*(q_proj|v_proj)",
    }
    published = (
        "--lora-rank",
        "2",
        "--lora-alpha",
        "1",
        "--lora-dropout",
        "0.25",
        "--lora-targets",
        "q_proj,k_proj,v_proj",
    )
    assert run("finetune", folder, "--model", vit, "--output", tmp_path / "published", *options, *published) == 0
    known = json.loads((tmp_path / "published" / "adapter_config.json").read_text())
    assert (known["r"], known["lora_alpha"], known["lora_dropout"]) == (2, 1, 0.25)
    assert known["target_modules"] == "(text|vision)_model\\..*(q_proj|k_proj|v_proj)"
    assert (
        run("finetune", folder, "--model", vit, "--output", tmp_path / "no", *options, "--lora-targets", "query") == 1
    )
    assert "there is no layer 'query' to adapt" in capsys.readouterr().err
    assert run("merge", resnet, tmp_path / "one", "--output", tmp_path / "wrong") == 1
    assert "is an adapter of another model" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
    assert run("merge", vit, tmp_path / "one", "--output", tmp_path / "whole") == 0
    assert "alpha 1" in capsys.readouterr().out
    whole = HFCLIPModel.from_pretrained(tmp_path / "whole").state_dict()
    expected = merged(HFCLIPModel.from_pretrained(vit), tmp_path / "one").state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in expected.items())
