"""GradCache: the gradient of a batch in the memory of a mini-batch."""

from pathlib import Path

import pytest
import torch
from support.pairs import encode, gradients, pairs, training_model
from support.training import drawn, make_trainer
from torch import nn

from hf_clip.model.modeling_hf_clip_resnet import freeze_batch_norm
from hf_clip.training.grad_cache import cached_step, check_no_live_batch_norm
from hf_clip.training.losses import clip_loss

pytestmark = pytest.mark.training


@pytest.fixture
def model(family: str, repositories: dict[str, Path]) -> nn.Module:
    return training_model(repositories[family])


def one_minus_cosine(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    a, b = (torch.cat([found[name].flatten().double() for name in first]) for found in (first, second))
    return 1 - torch.nn.functional.cosine_similarity(a, b, dim=0).item()


@pytest.mark.parametrize("size", [1, 4, 5, 16])
def test_every_mini_batch_gives_the_gradient_of_the_batch(model: nn.Module, size: int):
    batch = pairs(model.config, duplicates=True)
    loss, expected = gradients(model, batch)
    cached_loss, cached = gradients(model, batch, mini_batch_size=size)
    assert abs(cached_loss - loss) <= 1e-6 * max(1, loss)
    assert one_minus_cosine(cached, expected) <= 1e-9


def saved_bytes(compute) -> int:
    """The most bytes that a graph keeps at a time."""
    now = most = 0

    class Kept:
        def __init__(self, tensor: torch.Tensor):
            nonlocal now, most
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            now += self.size
            most = max(most, now)

        def __del__(self):
            nonlocal now
            now -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        compute()
    return most


def test_activations_are_those_of_one_mini_batch(model: nn.Module):
    batch = pairs(model.config)
    small = {name: rows[:4] for name, rows in batch.items()}
    peak = saved_bytes(lambda: gradients(model, batch, mini_batch_size=4))
    assert peak <= 1.2 * saved_bytes(lambda: gradients(model, small))
    assert peak < saved_bytes(lambda: gradients(model, batch)) / 2


def test_one_process_keeps_the_activations_of_one_tower(family: str, repositories: dict[str, Path], tmp_path: Path):
    trainer = make_trainer(repositories[family], tmp_path, mini_batch_size=4)
    batch = trainer.data_collator(drawn(16))
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    peak = saved_bytes(lambda: trainer.training_step(model, batch))
    towers = [
        saved_bytes(lambda: model.encode_image(batch["pixel_values"][:4])),
        saved_bytes(lambda: model.encode_text(batch["input_ids"][:4])),
    ]
    assert peak <= 1.2 * max(towers)


def test_dropout_is_drawn_alike_in_both_passes(model: nn.Module):
    """Against mini-batches in one graph, which draw the same numbers in the same order."""
    dropout = nn.Dropout(0.5)
    batch = pairs(model.config)

    def noisy(part):
        return tuple(dropout(rows) for rows in encode(model, part))

    def loss_of(images, texts):
        return clip_loss(images, texts, model.logit_scale)

    torch.manual_seed(1)
    parts = [noisy({name: rows[start : start + 4] for name, rows in batch.items()}) for start in range(0, 16, 4)]
    expected = torch.autograd.grad(
        loss_of(*(torch.cat(rows) for rows in zip(*parts, strict=True))), model.text_projection.weight
    )[0]
    model.zero_grad()
    torch.manual_seed(1)
    inputs = {name: batch[name] for name in ("input_ids", "pixel_values")}
    cached_step(noisy, [inputs], loss_of, model.logit_scale, mini_batch_size=4, backward=torch.Tensor.backward)
    torch.testing.assert_close(model.text_projection.weight.grad, expected)


def test_live_batch_norm_is_refused(repositories: dict[str, Path]):
    model = training_model(repositories["tiny ResNet"])
    check_no_live_batch_norm(model)
    with pytest.raises(ValueError, match="freeze_batch_norm"):
        check_no_live_batch_norm(freeze_batch_norm(model, frozen=False))
