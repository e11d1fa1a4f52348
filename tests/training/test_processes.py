"""Two processes that train one model: as one process with all pairs."""

import math
from pathlib import Path

import pytest
import torch
from support.distributed import on_two_processes
from support.pairs import encode, pairs, training_model, worst_error
from support.training import drawn, make_trainer
from support.training_processes import (
    LOSSES,
    ORDERS,
    labeled,
    orders,
    sharded,
    stock_gradients,
    trainer_gradients,
    trainers,
)

from hf_clip import HFCLIPModel
from hf_clip.training.datasets import PairDataset
from hf_clip.training.losses import clip_loss

pytestmark = [pytest.mark.training, pytest.mark.slow]


@pytest.fixture(scope="module")
def found(repositories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    return on_two_processes(trainers, folder, repositories, folder)


@pytest.mark.parametrize("mini_batch_size", [None, 4])
def test_a_step_is_that_of_one_process(family, repositories, found, tmp_path, mini_batch_size):
    expected = trainer_gradients(repositories[family], tmp_path, per_device_train_batch_size=16)
    for rank in found:
        assert worst_error(rank[family, mini_batch_size], expected) <= 1e-5


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_of_another_loss_is_that_of_one_process(repositories, found, tmp_path, loss):
    settings = {"train_dataset": labeled(loss), "per_device_train_batch_size": 16, **LOSSES[loss]}
    expected = trainer_gradients(repositories["tiny ViT"], tmp_path, **settings)
    for rank in found:
        assert worst_error(rank[loss], expected) <= 1e-5


def test_the_stock_trainer_compares_the_pairs_of_one_process_only(repositories, found, tmp_path):
    expected = stock_gradients(repositories["tiny ViT"], tmp_path, 16)
    assert worst_error(found[0]["stock"], expected) > 0.1


def test_an_evaluation_gathers_each_pair_once(repositories, found, tmp_path):
    trainer = make_trainer(repositories["tiny ViT"], tmp_path, eval_dataset=PairDataset(drawn(21)))
    expected = trainer.evaluate()
    for rank in found:
        assert rank["sizes"] == [(21, trainer.model.config.projection_dim)] * 2
        for name in ("eval_loss", "eval_mean_recall@1", "eval_text_retrieval_recall@5"):
            assert rank["metrics"][name] == pytest.approx(expected[name], abs=1e-6)


def test_a_stream_is_trained_on(found):
    assert [rank["stream"] for rank in found] == [2, 2]


def test_the_scale_is_the_same_and_in_its_bounds(found):
    assert found[0]["scale"] == found[1]["scale"] <= math.log(100) + 1e-6


def test_a_sharded_step_is_that_of_one_process(repositories, tmp_path):
    found = on_two_processes(sharded, tmp_path, repositories, tmp_path)
    for rank in found:  # on CPUs accelerate trains by DistributedDataParallel, and says nothing
        assert rank["refused"].startswith("fsdp is asked for, but accelerate would train without it, as MULTI_CPU")
    for family, repository in repositories.items():
        model = training_model(repository)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        batch = pairs(model.config)
        clip_loss(*encode(model, batch), model.logit_scale).backward()
        optimizer.step()
        for rank, (state_dict, images) in enumerate(found[n][family] for n in range(2)):
            assert state_dict["logit_scale"].shape == ()
            fresh = HFCLIPModel(model.config)
            fresh.load_state_dict(state_dict, strict=True)
            for name, tensor in model.state_dict().items():
                torch.testing.assert_close(state_dict[name], tensor, rtol=1e-5, atol=1e-6)
            with torch.no_grad():
                expected = model.encode_image(batch["pixel_values"].chunk(2)[rank])
            torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


def test_processes_train_one_model_in_whatever_order(repositories, tmp_path):
    """An evaluation before the first training left DistributedDataParallel out: each process trained its own model."""
    first, second = on_two_processes(orders, tmp_path, repositories["tiny ViT"], tmp_path)
    for order, weights in first.items():
        assert all(torch.equal(tensor, second[order][name]) for name, tensor in weights.items()), order
    for order in ORDERS:
        expected = first["train train" if order.startswith("train") else "train"]
        if "resume" not in order:  # one step was trained with the schedule of one
            assert all(torch.equal(tensor, expected[name]) for name, tensor in first[order].items()), order
