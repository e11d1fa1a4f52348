"""Hyperparameter search by transformers' Trainer, with Optuna."""

from pathlib import Path

import pytest
from support.training import arguments, drawn, processor

from hf_clip import CLIPTrainer, HFCLIPModel, PairDataset
from hf_clip.training.adapters import add_lora

pytestmark = [pytest.mark.integration, pytest.mark.training]


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
