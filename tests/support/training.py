"""Trainers of tiny models, on pairs that are drawn."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from hf_clip import HFCLIPModel, HFCLIPProcessor
from hf_clip.training.arguments import CLIPTrainingArguments
from hf_clip.training.datasets import PairDataset
from hf_clip.training.trainer import CLIPTrainer

OWN = ("train_dataset", "eval_dataset", "watch", "callbacks", "strict", "compute_loss_func", "compute_metrics")


def drawn(count: int = 16, seed: int = 0) -> list[dict[str, Any]]:
    """Draw images of noise, each with a caption of its own."""
    rng = np.random.default_rng(seed)
    return [
        {"image": Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)), "text": f"picture {number} of {seed}"}
        for number in range(count)
    ]


def arguments(folder: Path, **settings: Any) -> CLIPTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
    }
    return CLIPTrainingArguments(str(folder), **{**defaults, **settings})


def make_trainer(repository: Path, folder: Path, model: nn.Module | None = None, **settings: Any) -> CLIPTrainer:
    """Make a trainer of a tiny model; what is no setting goes to the trainer."""
    own = {name: settings.pop(name) for name in OWN if name in settings}
    own.setdefault("train_dataset", PairDataset(drawn()))
    model = HFCLIPModel.from_pretrained(repository) if model is None else model
    return CLIPTrainer(model, processor(repository), arguments(folder, **settings), **own)


@cache
def processor(repository: Path) -> HFCLIPProcessor:
    """Read a processor once: its tokenizer takes half a second."""
    return HFCLIPProcessor.from_pretrained(repository)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
