"""What two processes do together in tests/training/test_processes.py."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_clip import HFCLIPModel
from hf_clip.data.images import ImageRef
from hf_clip.data.rows import Row, Rows
from hf_clip.training.datasets import CLIPCollator, PairDataset
from hf_clip.training.fsdp import prepare_fsdp, register_encoders
from hf_clip.training.losses import clip_loss

from .pairs import encode, gradients_of, own_half, pairs, training_model
from .training import drawn, make_trainer

LOSSES: dict[str, dict[str, Any]] = {
    "classes": {"loss": "classes", "balance": "weights", "label_smoothing_factor": 0.1},
    "siglip": {"loss": "siglip"},
    "several classes": {"loss": "classes"},
}


class Stream(IterableDataset):
    """Pairs without a length."""

    def __iter__(self) -> Any:
        return iter(drawn(32))


def duplicated(count: int = 16) -> PairDataset:
    """Draw pairs of which two have one caption."""
    rows = drawn(count)
    rows[-1]["text"] = rows[0]["text"]
    return PairDataset(rows)


def labeled(loss: str, count: int = 16) -> PairDataset:
    """Draw images of three classes, or of several of them."""
    rows: Any = [{"image": row["image"], "label": "abc"[place % 3]} for place, row in enumerate(drawn(count))]
    if loss == "several classes":
        shown = [tuple(number for number in range(3) if place >> number & 1) for place in range(count)]
        refs = [ImageRef.of(row["image"], f"image {place}") for place, row in enumerate(rows)]
        rows = Rows([Row(ref, (), None, classes) for ref, classes in zip(refs, shown, strict=True)], list("abc"))
    return PairDataset(rows, templates=["a {}", "the {}"])


class Gradients(TrainerCallback):
    """Keep the gradients that a step is made of."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.found = gradients_of(model)


def trainer_gradients(repository: Path, folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Train one step on all 16 pairs, in float64 so that rounding hides nothing, and return the gradients."""
    gradients, model = Gradients(), training_model(repository).double()
    settings = {"max_steps": 1, "max_grad_norm": 0.0, "callbacks": [gradients], **settings}
    make_trainer(repository, folder, model, **{"train_dataset": duplicated(), **settings}).train()
    return gradients.found


def stock_gradients(repository: Path, folder: Path, size: int) -> dict[str, Tensor]:
    """Train the same step with transformers' own Trainer."""
    gradients = Gradients()
    collate = CLIPCollator(make_trainer(repository, folder).processing_class)

    def collator(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(rows)
        return {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"], "return_loss": True}

    arguments = TrainingArguments(
        str(folder),
        max_steps=1,
        max_grad_norm=0.0,
        per_device_train_batch_size=size,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    model = training_model(repository)
    Trainer(model, arguments, collator, train_dataset=duplicated(), callbacks=[gradients]).train()
    return gradients.found


def trainers(repositories: dict[str, Path], folder: Path) -> dict[Any, Any]:
    """Train on this process of two, with batches of 8 each."""
    found: dict[Any, Any] = {}
    for family, repository in repositories.items():
        found[family, None] = trainer_gradients(repository, folder)
        found[family, 4] = trainer_gradients(repository, folder, mini_batch_size=4)
    repository = repositories["tiny ViT"]
    for name, settings in LOSSES.items():
        found[name] = trainer_gradients(repository, folder, train_dataset=labeled(name), **settings)
    found["stock"] = stock_gradients(repository, folder, 8)
    trainer = make_trainer(repository, folder, eval_dataset=PairDataset(drawn(21)), per_device_eval_batch_size=4)
    sizes = []
    metrics = trainer.compute_metrics
    trainer.compute_metrics = lambda given: sizes.append([rows.shape for rows in given.predictions]) or metrics(given)
    found["metrics"], found["sizes"] = trainer.evaluate(), sizes[0]
    found["stream"] = make_trainer(repository, folder, train_dataset=Stream()).train().global_step
    model = HFCLIPModel.from_pretrained(repository)
    model.logit_scale.data.fill_(math.log(100))
    make_trainer(repository, folder, model, max_steps=2, learning_rate=0.1, warmup_steps=0).train()
    found["scale"] = model.logit_scale.item()
    return found


def sharded(repositories: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Take one step of SGD with sharded models, on this process of two; then ask the trainer to shard."""
    found: dict[str, Any] = {}
    for family, repository in repositories.items():
        model = register_encoders(fully_shard(prepare_fsdp(training_model(repository)), reshard_after_forward=False))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        batch = own_half(pairs(model.config))
        images, texts = encode(model, batch)
        clip_loss(images, texts, model.logit_scale, gather=True).backward()
        optimizer.step()
        state_dict = {name: whole(tensor) for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            found[family] = (state_dict, model.encode_image(batch["pixel_values"]))
    os.environ["ACCELERATE_USE_FSDP"] = "true"  # as `accelerate launch --use_fsdp` sets it
    try:
        make_trainer(repositories["tiny ViT"], folder)
    except ValueError as error:
        found["refused"] = str(error)
    return found


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


ORDERS = ("evaluate train", "predict train", "evaluate resume", "train evaluate train")


def orders(repository: Path, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Evaluate, predict, train and resume in several orders, on this process of two, and return the weights."""
    found = {}
    for order in ("train", "train train", *ORDERS):
        place = folder / order
        settings = {"eval_dataset": PairDataset(drawn(5)), "learning_rate": 1e-3, "save_strategy": "steps"}
        settings |= {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4}
        if "resume" in order:
            make_trainer(repository, place, **(settings | {"max_steps": 1})).train()
        trainer = make_trainer(repository, place, **settings)
        for word in order.split():
            if word == "evaluate":
                trainer.evaluate()
            elif word == "predict":
                trainer.predict(PairDataset(drawn(5)))
            else:
                trainer.train(resume_from_checkpoint=word == "resume")
        found[order] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    return found
