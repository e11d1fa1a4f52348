"""Random pairs for tiny models, with and without duplicates, and the gradients that losses give."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hf_clip import HFCLIPModel
from hf_clip.model.modeling_hf_clip_resnet import freeze_batch_norm
from hf_clip.training.grad_cache import cached_step
from hf_clip.training.losses import clip_loss

Batch = dict[str, Tensor]


def pairs(config: Any, count: int = 16, duplicates: bool = False) -> Batch:
    """Make random inputs with ids; with duplicates some texts and images are equal, across the halves of a batch."""
    generator = torch.Generator().manual_seed(0)
    size, text = config.vision_config.image_size, config.text_config
    ids = torch.randint(1, 400, (count, 9), generator=generator)
    ids[:, -1] = text.eos_token_id
    pixels = torch.randn(count, 3, size, size, generator=generator)
    numbers = torch.arange(2 * count).unflatten(0, (2, -1)).clone()
    if duplicates:
        ids[count - 1], numbers[1, count - 1] = ids[0], numbers[1, 0]
        pixels[count // 2], numbers[0, count // 2] = pixels[1], numbers[0, 1]
    return {"input_ids": ids, "pixel_values": pixels, "image_ids": numbers[0], "text_ids": numbers[1]}


def encode(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    outputs = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])
    return outputs.image_embeds, outputs.text_embeds


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.removeprefix("module."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def gradients(
    model: nn.Module, batch: Batch, *, gather: bool = False, mini_batch_size: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of a batch, and the gradient of each parameter."""
    model.zero_grad()
    logit_scale = getattr(model, "module", model).logit_scale

    def loss_of(images: Tensor, texts: Tensor) -> Tensor:
        return clip_loss(
            images, texts, logit_scale, image_ids=batch["image_ids"], text_ids=batch["text_ids"], gather=gather
        )

    if mini_batch_size is None:
        loss = loss_of(*encode(model, batch))
        loss.backward()
    else:
        no_sync: dict[str, Callable] = {"no_sync": model.no_sync} if hasattr(model, "no_sync") else {}
        loss = cached_step(
            lambda part: encode(model, part),
            [{name: batch[name] for name in ("input_ids", "pixel_values")}],
            loss_of,
            logit_scale,
            mini_batch_size=mini_batch_size,
            backward=lambda value: value.backward(),
            **no_sync,
        )
    return loss.detach(), gradients_of(model)


def training_model(folder: Path) -> HFCLIPModel:
    return freeze_batch_norm(HFCLIPModel.from_pretrained(folder)).train()


def own_half(batch: Batch) -> Batch:
    return {name: rows.chunk(2)[dist.get_rank()] for name, rows in batch.items()}


def distributed_gradients(folders: dict[str, Path], cases: list[tuple[bool, int | None]]) -> dict[Any, Any]:
    """Compute the gradients of one half of a batch of 16, on this process of two."""
    warnings.simplefilter("error", FutureWarning)
    found = {}
    for family, folder in folders.items():
        model = training_model(folder).double()  # rounding hides nothing
        for duplicates, mini_batch_size in cases:
            wrapped = DistributedDataParallel(model)
            batch = own_half(pairs(model.config, duplicates=duplicates))
            found[family, duplicates, mini_batch_size] = gradients(
                wrapped, batch, gather=True, mini_batch_size=mini_batch_size
            )
    return found


def worst_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of a parameter's gradient; those of key biases are nothing but rounding."""
    assert all(expected[name].norm() < 1e-6 for name in expected if name.endswith("k_proj.bias"))
    return max(
        ((found[name] - gradient).norm() / gradient.norm()).item()
        for name, gradient in expected.items()
        if not name.endswith("k_proj.bias")
    )
