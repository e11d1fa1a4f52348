"""Hyperparameter search by transformers' Trainer, with Optuna."""

from pathlib import Path

import pytest
import torch
from support.training import arguments, drawn, processor
from transformers import TrainerCallback

from hf_clip import CLIPTrainer, HFCLIPModel, PairDataset
from hf_clip.training.adapters import add_lora

pytestmark = [pytest.mark.integration, pytest.mark.training]


def test_each_trial_starts_from_the_base_with_its_own_settings(repositories: dict[str, Path], tmp_path: Path):
    """A rate that trains wins over one that does nothing; what was frozen is frozen in each trial."""
    repository, seen = repositories["tiny ViT"], []

    class Record(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, base[name])}
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            seen.append((args.learning_rate, moved, trained))

    base = HFCLIPModel.from_pretrained(repository).state_dict()
    trainer = CLIPTrainer(
        None,
        processor(repository),
        arguments(tmp_path, train="projections", eval_strategy="no"),
        train_dataset=PairDataset(drawn()),
        eval_dataset=PairDataset(drawn()),
        model_init=lambda trial: HFCLIPModel.from_pretrained(repository),
        callbacks=[Record()],
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [1e-12, 1e-2])},
        compute_objective=lambda metrics: metrics["eval_loss"],
        direction="minimize",
        backend="optuna",
        n_trials=2,
        sampler=grid({"learning_rate": [1e-12, 1e-2]}),
    )
    assert best.hyperparameters == {"learning_rate": 1e-2}
    assert {rate for rate, _, _ in seen} == {1e-12, 1e-2}
    assert all(
        not moved and trained == {"visual_projection.weight", "text_projection.weight", "logit_scale"}
        for _, moved, trained in seen
    )


def test_the_rank_of_an_adapter_is_searched(repositories: dict[str, Path], tmp_path: Path):
    repository = repositories["tiny ViT"]
    ranks: list[int] = []

    def model_init(trial):
        ranks.append(1 if trial is None else trial.suggest_categorical("rank", [1, 4]))
        return add_lora(HFCLIPModel.from_pretrained(repository), rank=ranks[-1])

    trainer = CLIPTrainer(
        None,
        processor(repository),
        arguments(tmp_path, max_steps=1),
        train_dataset=PairDataset(drawn()),
        eval_dataset=PairDataset(drawn()),
        model_init=model_init,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {},
        compute_objective=lambda metrics: metrics["eval_mean_recall@1"],
        direction="maximize",
        backend="optuna",
        n_trials=2,
        sampler=grid({"rank": [1, 4]}),
    )
    assert {1, 4} <= set(ranks)
    assert best.hyperparameters["rank"] in (1, 4)


def grid(space: dict) -> object:
    from optuna.samplers import GridSampler

    return GridSampler(space)
