"""Whole models of `torch.save(model)`, read without their code."""

import pickle

import pytest
import torch
from support.originals import original_model
from torch import nn

import hf_clip.openai as ours
from hf_clip.openai.checkpoints import read_checkpoint
from hf_clip.openai.errors import CheckpointError

HOLDERS = {
    "model": lambda model: model,
    "DataParallel": nn.DataParallel,
    "dict": lambda model: {"epoch": 3, "model": model, "optimizer": {"lr": 0.1}},
    "parts": lambda model: nn.ModuleDict({"clip": model}),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("whose", ["original", "hf_clip"])
def test_models(whose, holder, family, tmp_path):
    right = original_model(family)
    model = right
    if whose == "hf_clip":
        model = ours.build_model(right.state_dict()).float()
        model.load_state_dict(right.state_dict())
    torch.save(HOLDERS[holder](model), tmp_path / "model.pt")
    got = read_checkpoint(tmp_path / "model.pt")
    assert got.keys() == right.state_dict().keys()
    for key, tensor in right.state_dict().items():
        assert torch.equal(got[key], tensor)
        assert not got[key].requires_grad
    loaded, _ = ours.load(tmp_path / "model.pt", "cpu")
    assert torch.equal(loaded.logit_scale, right.logit_scale)


def test_no_code_of_the_file_runs(tmp_path):
    """Names of the original's module that are not its classes, and calls of those that are."""

    class Call:
        def __init__(self, function, *args):
            self.call = function, args

        def __reduce__(self):
            return self.call

    for content in (Call(print, "ran"), {"model": original_model("tiny ViT"), "x": Call(exec, "raise SystemExit")}):
        torch.save(content, tmp_path / "evil.pt")
        with pytest.raises(CheckpointError, match=r"holds Python objects \((print|exec)\)"):
            read_checkpoint(tmp_path / "evil.pt")


def test_foreign_parts_are_named(tmp_path):
    model = original_model("tiny ViT")
    model.head = Foreign(2, 2)
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"holds Python objects \(.*Foreign\)"):
        read_checkpoint(tmp_path / "model.pt")


def test_nothing_stays_allowed(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save(original_model("tiny ViT"), tmp_path / "model.pt")
    read_checkpoint(tmp_path / "model.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "model.pt", weights_only=True)


class Foreign(nn.Linear):
    pass


def test_modules_within_themselves_are_refused(tmp_path):
    """Cycles, and shared parts that would take 2^40 visits."""
    cycle = original_model("tiny ViT")
    cycle._modules["again"] = cycle
    shared = nn.Linear(1, 1)
    for _ in range(40):
        shared = nn.Sequential(shared, shared)
    shared.append(original_model("tiny ViT"))
    for module in (cycle, shared):
        torch.save(module, tmp_path / "model.pt")
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "model.pt")
