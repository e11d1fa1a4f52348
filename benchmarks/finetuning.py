"""`python -m benchmarks.finetuning`: accuracy on a new and on an old task, by loss, trainer and adapter.

The models of examples/ know colored shapes and have never seen a digit. All start from the same weights and take as
many steps of equal batches, at the same rate and weight decay. "Learned" is the accuracy on digits that were held out,
"kept" that on shapes. Trainers of others and the loop by hand are as their documentation shows them.
"""

import json
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import typer
from open_clip.loss import ClipLoss
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from tqdm import tqdm
from transformers import CLIPModel, Trainer, TrainingArguments, set_seed

from examples.shapes import SEEN
from examples.train_shapes import CHECKPOINTS, PROMPT
from hf_clip import CLIPTrainer, CLIPTrainingArguments, PairDataset, load_clip
from hf_clip.data.images import ImageRef
from hf_clip.data.rows import Row, Rows
from hf_clip.model.modeling_hf_clip_base import normalize
from hf_clip.openai.checkpoints import read_checkpoint
from hf_clip.openai.convert import DType, Layout, to_repository
from hf_clip.training.adapters import add_lora
from hf_clip.training.datasets import CLIPCollator

from .few_shot import Data, digits, interval, shapes
from .machine import describe

TRAINED_ON = 1400
FEW = 16  # pictures of each class in the table of adapters
BATCH, EPOCHS = 32, 1
RATE, DECAY, BETAS, EPSILON, WARM_UP = 3e-4, 0.1, (0.9, 0.98), 1e-6, 0.1
ADAPTER_STEPS = 43
ADAPTER_RATE = 2e-3  # at the usual 2e-4 layers of 64 to 128 dimensions move little in so few steps
# CLIP-LoRA's (Zanella and Ben Ayed, 2024): https://github.com/MaxZanella/CLIP-LoRA
ADAPTERS = {
    "rank 8, alpha 8, q v": {"rank": 8, "alpha": 8, "targets": ("q_proj", "v_proj"), "dropout": 0.0},
    "CLIP-LoRA: rank 2, alpha 1, q k v, dropout 0.25": {
        "rank": 2,
        "alpha": 1,
        "targets": ("q_proj", "k_proj", "v_proj"),
        "dropout": 0.25,
    },
}
Encode = Callable[[Tensor], Tensor]


@dataclass
class Task:
    """A family's model and the digits to learn from."""

    family: str
    train: Rows
    template: str
    seed: int

    @cached_property
    def ours(self) -> tuple[Any, Any]:
        return load_clip(str(CHECKPOINTS[self.family]))

    @cached_property
    def stock(self) -> CLIPModel:
        repository = to_repository(read_checkpoint(CHECKPOINTS[self.family]), Layout.transformers, DType.float32)
        model = CLIPModel(repository.config)
        model.load_state_dict(repository.tensors)
        return model

    @property
    def pairs(self) -> PairDataset:
        return PairDataset(self.train, templates=self.template, seed=self.seed)

    @property
    def steps(self) -> int:
        return EPOCHS * (len(self.train) // BATCH)

    def batches(self, pad_to_max_length: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and token ids of an epoch, in an order drawn by torch's generator."""
        collate, pairs = CLIPCollator(self.ours[1], pad_to_max_length=pad_to_max_length), self.pairs
        for places in torch.randperm(len(pairs)).split(BATCH):
            if len(places) == BATCH:
                batch = collate([pairs[int(place)] for place in places])
                yield batch["pixel_values"], batch["input_ids"]


def settings(task: Task) -> dict[str, Any]:
    """Settings of both Trainers; betas, epsilon and warm-up are the defaults of CLIPTrainingArguments."""
    return {
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "adam_beta2": BETAS[1],
        "adam_epsilon": EPSILON,
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARM_UP,
        "max_steps": task.steps,
        "per_device_train_batch_size": BATCH,
        "dataloader_drop_last": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10_000,
        "use_cpu": True,
        "seed": task.seed,
    }


def ours(loss: str) -> Callable[[Task], tuple[Encode, Encode]]:
    """CLIPTrainer."""

    def train(task: Task) -> tuple[Encode, Encode]:
        model, processor = task.ours
        arguments = CLIPTrainingArguments(tempfile.mkdtemp(), loss=loss, **settings(task))
        CLIPTrainer(model, processor, arguments, train_dataset=task.pairs).train()
        return model.eval().encode_image, model.encode_text

    return train


def stock(task: Task) -> tuple[Encode, Encode]:
    """The Trainer of transformers with its CLIPModel and `return_loss=True`."""
    model, collate = task.stock, CLIPCollator(task.ours[1])

    def collator(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(rows)
        return {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"], "return_loss": True}

    arguments = TrainingArguments(tempfile.mkdtemp(), remove_unused_columns=False, **settings(task))
    Trainer(model, arguments, collator, train_dataset=task.pairs).train()
    model.eval()
    return (
        lambda pixels: model.get_image_features(pixels).pooler_output,
        lambda ids: model.get_text_features(ids).pooler_output,
    )


def by_hand(task: Task) -> tuple[Encode, Encode]:
    """The loop that is found in most notebooks: AdamW at one rate, and both cross-entropies of a batch."""
    model = task.ours[0].train()
    optimizer = AdamW(model.parameters(), RATE, BETAS, EPSILON, DECAY, fused=True)
    for _ in range(EPOCHS):
        for pixels, ids in task.batches():
            logits = model(ids, pixels).logits_per_image
            targets = torch.arange(len(logits))
            loss = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().encode_image, model.encode_text


def theirs(task: Task) -> tuple[Encode, Encode]:
    """`train_one_epoch` of open_clip_train, with its groups of parameters and its cosine."""
    model = open_clip.load_openai_model(str(CHECKPOINTS[task.family]), precision="fp32", device="cpu")
    model.output_dict = True
    named = list(model.named_parameters())
    spared = [p for name, p in named if p.ndim < 2 or "bn" in name or "ln" in name or "logit_scale" in name]
    others = [p for name, p in named if not any(p is spare for spare in spared)]
    groups = [{"params": spared, "weight_decay": 0.0}, {"params": others, "weight_decay": DECAY}]
    optimizer = AdamW(groups, RATE, BETAS, EPSILON, fused=True)
    scheduler = cosine_lr(optimizer, RATE, int(WARM_UP * task.steps), task.steps)
    options = Namespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        grad_clip_norm=1.0,
        horovod=False,
        log_every_n_steps=10_000,
        batch_size=BATCH,
        world_size=1,
        rank=0,
        local_rank=0,
        wandb=False,
        distributed=False,
    )
    for epoch in range(EPOCHS):
        loader = Loader(task)
        data = {"train": SimpleNamespace(set_epoch=lambda _: None, dataloader=loader)}
        train_one_epoch(model, data, ClipLoss(), epoch, optimizer, None, scheduler, None, options)
    return model.eval().encode_image, model.encode_text


class Loader:
    """Batches with the counts that open_clip's trainer asks for."""

    def __init__(self, task: Task):
        self.task = task
        self.num_batches = len(task.train) // BATCH
        self.num_samples = self.num_batches * BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.task.batches(pad_to_max_length=True)


WAYS = {
    "CLIPTrainer, loss classes (the default for labels)": ours("classes"),
    "CLIPTrainer, loss contrastive": ours("contrastive"),
    "CLIPTrainer, loss siglip": ours("siglip"),
    "transformers' Trainer": stock,
    "open_clip's trainer": theirs,
    "loop by hand": by_hand,
}


def adapted(adapter: dict[str, Any]) -> Callable[[Task], tuple[Encode, Encode]]:
    """CLIPTrainer with LoRA and the loss over classes."""

    def train(task: Task) -> tuple[Encode, Encode]:
        base, processor = task.ours
        set_seed(task.seed)
        model = add_lora(base, **adapter)
        changed = {"learning_rate": ADAPTER_RATE, "max_steps": ADAPTER_STEPS}
        arguments = CLIPTrainingArguments(tempfile.mkdtemp(), loss="classes", **settings(task) | changed)
        CLIPTrainer(model, processor, arguments, train_dataset=task.pairs).train()
        whole = model.merge_and_unload().eval()
        return whole.encode_image, whole.encode_text

    return train


def rows_of(data: Data, places: list[int]) -> Rows:
    pictures, targets, names, _ = data
    return Rows([Row(ImageRef.of(pictures[place], f"digit {place}"), (), targets[place]) for place in places], names)


def split(data: Data, seed: int, few: int | None = None) -> tuple[list[int], list[int]]:
    """Places to train on, `few` of each class if given, and places to measure on."""
    order = np.random.default_rng(seed).permutation(len(data[0])).tolist()
    known, test = order[:TRAINED_ON], order[TRAINED_ON:]
    if few is not None:
        known = [place for number in range(len(data[2])) for place in [p for p in known if data[1][p] == number][:few]]
    return known, test


@torch.no_grad()
def accuracy(encoders: tuple[Encode, Encode], processor: Any, data: Data, places: list[int]) -> float:
    pictures, targets, names, template = data
    encode_image, encode_text = encoders
    prompts = [template.format(name) for name in names]
    # all columns: open_clip takes no fewer
    texts = processor(text=prompts, padding="max_length", return_tensors="pt")["input_ids"]
    pixels = processor(images=[pictures[place] for place in places], return_tensors="pt")["pixel_values"]
    found = (normalize(encode_image(pixels)) @ normalize(encode_text(texts)).T).argmax(1)
    return float((found == torch.tensor([targets[place] for place in places])).float().mean())


def renamed(data: Data) -> Data:
    """Name the digits by words that the model knows: embeddings of "0" to "9" are zero, and adapters leave them so."""
    pictures, targets, names, _ = data
    return pictures, targets, [" ".join(pair) for pair in SEEN[: len(names)]], PROMPT


def measure(
    ways: dict[str, Callable[[Task], tuple[Encode, Encode]]],
    family: str,
    seeds: int,
    learn: Data,
    few: int | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Return accuracies on digits and shapes, and seconds, by way, one for each seed, which splits the data."""
    keep = shapes(8)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tqdm(total=seeds * len(ways), desc=family) as bar:
        for seed in range(seeds):
            known, test = split(learn, seed, few)
            for name, train in {"before": None, **ways}.items():
                task = Task(family, rows_of(learn, known), learn[3], seed)
                torch.manual_seed(seed)
                start = time.perf_counter()
                model = task.ours[0]
                encoders = (model.eval().encode_image, model.encode_text) if train is None else train(task)
                found[name]["seconds"].append(time.perf_counter() - start)
                found[name]["learned"].append(accuracy(encoders, task.ours[1], learn, test))
                found[name]["kept"].append(accuracy(encoders, task.ours[1], keep, list(range(len(keep[0])))))
                bar.update(train is not None)
    return found


def show(console: Console, title: str, found: dict[str, dict[str, list[float]]]) -> None:
    table = Table("", "learned", "kept", "seconds", title=title, box=SIMPLE_HEAD)
    for name, values in found.items():
        seconds = "" if name == "before" else f"{np.mean(values['seconds']):.1f}"
        table.add_row(name, interval(values["learned"]), interval(values["kept"]), seconds)
    console.print(table)


def main(
    seeds: Annotated[int, typer.Option(min=2, help="Splits of the digits, orders and draws.")] = 5,
    family: Annotated[str, typer.Option(help="vit; transformers has no ResNet to compare with.")] = "vit",
    adapters: Annotated[bool, typer.Option("--adapters", help="Compare settings of LoRA instead. Needs peft.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the numbers.")] = Path(
        "build/benchmarks/finetuning.json"
    ),
) -> None:
    """Fine-tune on digits, and measure the accuracy on digits and on shapes.

    Example: python -m benchmarks.finetuning --seeds 5
    """
    console = Console(width=max(110, Console().width))
    console.print(describe(torch.device("cpu")))
    torch.set_num_threads(1)
    tables: dict[str, dict[str, dict[str, list[float]]]] = {}
    if adapters:
        ways = {name: adapted(adapter) for name, adapter in ADAPTERS.items()}
        for few in (None, FEW):
            pictures = f"{TRAINED_ON:,} digits" if few is None else f"{few} digits of each class"
            title = f"LoRA, {pictures}, {ADAPTER_STEPS} steps of {BATCH}, rate {ADAPTER_RATE:g}"
            tables[title] = measure(ways, family, seeds, renamed(digits()), few)
    else:
        steps = EPOCHS * (TRAINED_ON // BATCH)
        tables[f"{TRAINED_ON:,} digits, {steps} steps of {BATCH}, rate {RATE:g}"] = measure(
            WAYS, family, seeds, digits()
        )
    for title, found in tables.items():
        show(console, f"{title}: mean of {seeds} seeds and 95 % interval", found)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
