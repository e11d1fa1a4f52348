"""A training step with AdamW, beside the Trainer of transformers, open_clip's step and sentence-transformers' loss.

All train in float32 from the same weights, which a learning rate of 0 keeps, on the same pairs, with all 77 columns of
text, fixed BatchNorm statistics, and gradients clipped to a norm of 1. Peers that cache embeddings give the gradients
of the whole batch with the activations of a mini-batch. Memory is the most that tensors saved for the backward pass
take at a time. sentence-transformers takes part where it is installed.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_clip.training.arguments import CLIPTrainingArguments
from hf_clip.training.trainer import CLIPTrainer

from .common import Row, rows_of, take_turns
from .peers import EXACT, OPEN_CLIP, STOCK, Peers, build

CASES = {"ViT-B/32": (32, 8), "RN50": (16, None)}
SENTENCES = "sentence-transformers"
WHOLE, CACHED = "whole batch", "mini-batches"
LIMIT = 300  # seconds a case: a step of a full-size model takes some ten
MAX_NORM = 1.0  # what TrainingArguments clip gradients to
Batch = dict[str, Tensor]


def measure(rounds: int, device: torch.device, models: Sequence[str]) -> list[Row]:
    """Rows for those of `models` in CASES; whole batches and mini-batches, which do more, are cases of their own."""
    rows = []
    for name in [name for name in models if name in CASES]:
        batch, mini_batch = CASES[name]
        peers = build(name, device)
        pairs_ = pairs(peers, batch)
        case = f"{name}, batch {batch}"
        rows += compare(case, whole_batch(peers, pairs_), OPEN_CLIP, batch, rounds)
        if mini_batch is not None:
            ways = mini_batches(peers, pairs_, mini_batch)
            rows += compare(f"{case} in mini-batches of {mini_batch}", ways, OPEN_CLIP, batch, rounds)
    return rows


def compare(case: str, ways: dict[str, Callable[[], float]], baseline: str, batch: int, rounds: int) -> list[Row]:
    peak = {peer: saved_bytes(step) / 2**20 for peer, step in ways.items()}
    seconds = take_turns(ways, rounds, f"{case}, training", limit=LIMIT)
    notes = {peer: f"saved for backward {mebibytes:,.0f} MiB" for peer, mebibytes in peak.items()}
    return rows_of("training", case, seconds, batch, baseline=baseline, notes=notes)


def pairs(peers: Peers, count: int) -> Batch:
    """Random pixels, and token ids of 20 words, padded to 77."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, peers.resolution, peers.resolution, generator=generator)
    ids = torch.zeros(count, 77, dtype=torch.long)
    ids[:, :22] = torch.randint(1, 400, (count, 22), generator=generator)
    ids[:, 21] = peers.exact.config.text_config.eos_token_id
    return {"input_ids": ids.to(peers.exact.device), "pixel_values": pixels.to(peers.exact.device)}


def whole_batch(peers: Peers, batch: Batch) -> dict[str, Callable[[], float]]:
    """Functions that take one step with all activations at once and return its loss, by peer."""
    ways = {
        EXACT: ours(peers, batch, None),
        OPEN_CLIP: open_clip_step(peers.open_clip, batch, len(batch["pixel_values"])),
    }
    return ways if peers.stock is None else {**ways, STOCK: stock(peers, batch)}


def mini_batches(peers: Peers, batch: Batch, size: int) -> dict[str, Callable[[], float]]:
    """Functions that take the same step with the activations of `size` pairs at a time, by peer."""
    ways = {
        EXACT: ours(peers, batch, size),
        OPEN_CLIP: open_clip_step(peers.open_clip, batch, size),
    }
    if peers.stock is not None and find_spec("sentence_transformers") is not None:
        ways[SENTENCES] = sentence_transformers_step(peers, batch, size)
    return ways


def ours(peers: Peers, batch: Batch, mini_batch: int | None) -> Callable[[], float]:
    arguments = CLIPTrainingArguments(folder(), mini_batch_size=mini_batch, **settings(peers))
    trainer = CLIPTrainer(peers.exact, peers.processor, arguments)
    numbers = torch.arange(len(batch["pixel_values"]), device=peers.exact.device)
    valid = torch.ones_like(numbers, dtype=torch.bool)
    return trainer_step(trainer, {**batch, "image_ids": numbers, "text_ids": numbers, "valid": valid})


def stock(peers: Peers, batch: Batch) -> Callable[[], float]:
    trainer = Trainer(peers.stock, TrainingArguments(folder(), **settings(peers)))
    return trainer_step(trainer, {**batch, "return_loss": True})


def settings(peers: Peers) -> dict[str, Any]:
    return {"report_to": "none", "use_cpu": peers.exact.device.type == "cpu", "learning_rate": 0.0}


def folder() -> str:
    return str(Path(tempfile.gettempdir(), "hf_clip_benchmark"))


def trainer_step(trainer: Trainer, batch: dict[str, Any]) -> Callable[[], float]:
    """The body of the Trainer's loop, with its callbacks."""
    optimizer, model, handler = trainer.create_optimizer(), trainer.model, trainer.callback_handler
    trainer.current_gradient_accumulation_steps = 1

    def step() -> float:
        loss = trainer.training_step(model, batch)
        trainer._clip_grad_norm(model)
        handler.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
        optimizer.step()
        handler.on_optimizer_step(trainer.args, trainer.state, trainer.control)
        model.zero_grad()
        return loss.item()

    return step


def own_step(model: nn.Module, forward_backward: Callable[[], Tensor], scale: nn.Parameter) -> Callable[[], float]:
    """A step around gradients: clip, AdamW, and keep the scale in its bounds, as open_clip_train does."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step() -> float:
        loss = forward_backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        with torch.no_grad():
            scale.clamp_(0, math.log(100))
        optimizer.zero_grad()
        return loss.item()

    return step


def open_clip_step(model: nn.Module, batch: Batch, mini_batch: int) -> Callable[[], float]:
    """The step of open_clip_train with --accum-freq: cached features stand for the other mini-batches.

    The model stays in evaluation mode: it has no dropout, and its BatchNorms keep their statistics.
    """
    loss_of = ClipLoss()
    parts = list(zip(batch["pixel_values"].split(mini_batch), batch["input_ids"].split(mini_batch), strict=True))

    def gradients() -> Tensor:
        if len(parts) == 1:
            loss = loss_of(*model(*parts[0]))
            loss.backward()
            return loss
        with torch.no_grad():
            cached = [model(*part)[:2] for part in parts]
        for place, part in enumerate(parts):
            images, texts, scale = model(*part)
            found = [*cached[:place], (images, texts), *cached[place + 1 :]]
            loss = loss_of(*(torch.cat(rows) for rows in zip(*found, strict=True)), scale)
            loss.backward()
        return loss

    return own_step(model, gradients, model.logit_scale)


def sentence_transformers_step(peers: Peers, batch: Batch, mini_batch: int) -> Callable[[], float]:
    """The cached loss over transformers' CLIP, both ways, at the scale of the model, which it does not train."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Normalize

    with tempfile.TemporaryDirectory() as place:
        peers.stock.save_pretrained(place)
        peers.stock_processor.save_pretrained(place)
        model = SentenceTransformer(place, device=str(peers.exact.device))
    model.append(Normalize())
    loss_of = CachedMultipleNegativesRankingLoss(
        model,
        scale=peers.stock.logit_scale.exp().item(),
        mini_batch_size=mini_batch,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )

    def gradients() -> Tensor:
        columns = [
            {"input_ids": batch["input_ids"], "modality": "text"},
            {"pixel_values": batch["pixel_values"], "modality": "image"},
        ]
        loss = loss_of(columns, torch.empty(0))
        loss.backward()
        return loss

    return own_step(model, gradients, model[0].model.logit_scale)


def saved_bytes(step: Callable[[], object]) -> int:
    """The most bytes that tensors saved for a backward pass take at a time; each storage counts once."""
    held: dict[int, list[int]] = {}
    most = 0

    class Saved:
        def __init__(self, tensor: Tensor):
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            entry = held.setdefault(self.key, [0, tensor.untyped_storage().nbytes()])
            entry[0] += 1
            nonlocal most
            most = max(most, sum(size for _, size in held.values()))

        def __del__(self) -> None:
            held[self.key][0] -= 1
            if not held[self.key][0]:
                del held[self.key]

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        step()
    return most
