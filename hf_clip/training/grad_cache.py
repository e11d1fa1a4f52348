"""GradCache (Gao et al. 2021): the exact gradient of a large batch in the memory of a mini-batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]
Embeds = tuple[Tensor | None, Tensor | None]


def cached_step(
    encode: Callable[[Inputs], Embeds],
    inputs: Sequence[Inputs],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    logit_scale: nn.Parameter,
    *,
    mini_batch_size: int,
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], Any] = nullcontext,
) -> Tensor:
    """Compute the loss of a batch and accumulate its gradients, with the activations of one mini-batch at a time.

    Embeddings are computed twice: first without a graph, to get the gradient of the loss with respect to them; then
    mini-batch by mini-batch with one, to backpropagate that gradient into the weights. Both passes draw the same random
    numbers, so dropout masks agree.

    Args:
        encode: Computes image and text embeddings (n, D) of inputs; None for a tower without inputs.
        inputs: Groups of tensors with N rows each; a group is encoded in one call. One group for each tower needs the
            activations of one tower at a time.
        loss_of: Computes the loss of all embeddings (N, D), scaled as its gradients should be.
        logit_scale: The parameter that `loss_of` uses besides the embeddings.
        mini_batch_size: Rows to encode at a time.
        backward: Runs the backward pass of a scalar, as `accelerator.backward`.
        no_sync: Returns a context in which processes do not exchange gradients; the last mini-batch runs outside it.

    Returns:
        The loss, detached.
    """
    parts = [part for group in inputs for part in _parts(group, mini_batch_size)]
    states, embeds = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state(part))
            embeds.append(encode(part))
    images, texts = (
        torch.cat([rows for rows in tower if rows is not None]).requires_grad_() for tower in zip(*embeds, strict=True)
    )
    del embeds
    with torch.enable_grad():
        loss = loss_of(images, texts)
    learned = [tensor for tensor in (images, texts, logit_scale) if tensor.requires_grad]
    # the embeddings of a frozen tower get a gradient too: it costs one matrix product
    gradients = torch.autograd.grad(loss, learned)
    waiting = [iter(gradient.split(mini_batch_size)) for gradient in gradients[:2]]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with nullcontext() if last else no_sync(), _replayed(part, states[number]):
            towers = [(rows, next(rest)) for rows, rest in zip(encode(part), waiting, strict=True) if rows is not None]
            surrogate = torch.stack([(rows * gradient).sum() for rows, gradient in towers]).sum()
            if last and logit_scale.requires_grad:  # inside a backward pass, where DDP averages it as all others
                surrogate = surrogate + logit_scale * gradients[2]
            if surrogate.requires_grad:
                backward(surrogate)
    return loss.detach()


def check_no_live_batch_norm(model: nn.Module) -> None:
    """Raise ValueError if a BatchNorm uses the statistics of its batch, which mini-batches would change."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"mini_batch_size needs fixed statistics, {name} takes those of each mini-batch: call "
                "freeze_batch_norm(model), or set freeze_batch_norm=True"
            )


def _parts(inputs: Inputs, size: int) -> Iterator[Inputs]:
    split = {name: tensor.split(size) for name, tensor in inputs.items()}
    for rows in zip(*split.values(), strict=True):
        yield dict(zip(split, rows, strict=True))


def _devices(inputs: Inputs) -> list[torch.device]:
    return list({tensor.device for tensor in inputs.values() if tensor.device.type == "cuda"})


def _random_state(inputs: Inputs) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _devices(inputs))]


@contextmanager
def _replayed(inputs: Inputs, state: list[Tensor]) -> Iterator[None]:
    devices = _devices(inputs)
    with torch.random.fork_rng(devices):
        torch.set_rng_state(state[0])
        for device, device_state in zip(devices, state[1:], strict=True):
            torch.cuda.set_rng_state(device_state, device)
        yield


__all__ = ["cached_step", "check_no_live_batch_norm"]
