"""Inputs and embeddings of a model's towers."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..model.modeling_hf_clip_base import normalize as unit_length


def features(
    model: PreTrainedModel,
    modality: str,
    inputs: Mapping[str, torch.Tensor],
    normalize: bool = True,
    deterministic: bool = False,
) -> torch.Tensor:
    """Compute embeddings (B, projection_dim) of `modality`, "image" or "text", float32 on the model's device.

    With `deterministic`, each row goes through the model alone, on the CPU on one thread, several rows at a time. Its
    bits depend neither on the other rows nor on the number of threads, by which matrix products choose their order of
    additions.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first.")
    compute = partial(_features, model, modality, normalize=normalize)
    if not deterministic:
        return compute(inputs)
    count = len(next(iter(inputs.values())))
    rows = [{name: tensor[row : row + 1] for name, tensor in inputs.items()} for row in range(count)]
    if model.device.type != "cpu":
        return torch.cat([compute(row) for row in rows])
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, "hf_clip", torch.set_num_threads, (1,)) as pool:
            return torch.cat(list(pool.map(compute, rows)))
    finally:
        torch.set_num_threads(threads)  # PyTorch starts later threads with the number that was set last


def _features(
    model: PreTrainedModel, modality: str, inputs: Mapping[str, torch.Tensor], normalize: bool
) -> torch.Tensor:
    with torch.inference_mode():
        inputs = {name: tensor.to(model.device, non_blocking=True) for name, tensor in inputs.items()}
        if hasattr(model, f"get_{modality}_features"):
            embeds = getattr(model, f"get_{modality}_features")(**inputs).pooler_output
        else:
            embeds = getattr(model(**inputs), f"{modality}_embeds", None)
            if embeds is None:
                raise TypeError(f"{type(model).__name__} gives no {modality} embeddings.")
        embeds = unit_length(embeds.float()) if normalize else embeds.float()
    return embeds.clone()  # an ordinary tensor: one of inference mode cannot be trained on


def collect(batches: Iterable[torch.Tensor], unit: str, total: int | None) -> torch.Tensor:
    """Join all rows of `batches`, with a progress bar if they take longer than two seconds."""
    rows = []
    with tqdm(desc=f"{unit}s", total=total, unit=unit, delay=2) as bar:
        for batch in batches:
            rows.append(batch)
            bar.update(len(batch))
    if not rows:
        raise ValueError(f"{unit}s is empty: give at least one.")
    return torch.cat(rows)


def check_list(name: str, values: Sequence[Any]) -> None:
    if isinstance(values, str):
        raise ValueError(f"{name} is a list of texts, not the one text {values!r}.")
    if not len(values):
        raise ValueError(f"{name} is empty: give at least one.")


__all__ = ["check_list", "collect", "features"]
