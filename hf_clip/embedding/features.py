"""Inputs and embeddings of a model's towers: tensors of a PyTorch model, NumPy arrays of an exported one without it."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from tqdm.auto import tqdm

from ..exported.model import ExportedCLIP

if TYPE_CHECKING:  # exported models run without these
    from transformers import PreTrainedModel

# a tensor or an array, by the model
Array: TypeAlias = Any
Model: TypeAlias = "PreTrainedModel | ExportedCLIP"


def features(
    model: Model,
    modality: str,
    inputs: Mapping[str, Array],
    normalize: bool = True,
    deterministic: bool = False,
) -> Array:
    """Compute embeddings (B, projection_dim) of `modality`, "image" or "text", float32 on the model's device.

    With `deterministic`, each row goes through the model alone, on the CPU on one thread, several rows at a time. Its
    bits depend neither on the other rows nor on the number of threads, by which matrix products choose their order of
    additions.
    """
    if isinstance(model, ExportedCLIP):
        [values] = inputs.values()
        encode = getattr(model, f"encode_{modality}")
        embeds = np.concatenate([encode(row[None]) for row in values]) if deterministic else encode(values)
        return unit_length(embeds) if normalize else embeds
    import torch

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


def _features(model: Any, modality: str, inputs: Mapping[str, Array], normalize: bool) -> Array:
    import torch

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


def tensor_type(model: Model) -> str:
    """Return the kind of arrays that the model reads, in transformers' words: "pt" or "np"."""
    return "np" if isinstance(model, ExportedCLIP) else "pt"


def as_batch(model: Model, values: Any) -> Array:
    """Return a batch as an array of the model's kind."""
    if isinstance(model, ExportedCLIP):
        return np.asarray(values)
    import torch

    return torch.as_tensor(values)


def is_on_cpu(model: Model) -> bool:
    """Return True if the model computes on the CPU."""
    return str(model.device).partition(":")[0] == "cpu"


def on_cpu(embeds: Array) -> Array:
    """Copy a tensor to the CPU, unless it is there; arrays always are."""
    return embeds if isinstance(embeds, np.ndarray) else embeds.cpu()


def unit_length(embeds: Array) -> Array:
    """Scale embeddings (..., D) to length 1, without an epsilon, as the original does."""
    if isinstance(embeds, np.ndarray):
        return embeds / np.linalg.norm(embeds, axis=-1, keepdims=True)
    from ..model.modeling_hf_clip_base import normalize

    return normalize(embeds)


def concatenate(rows: Sequence[Array]) -> Array:
    """Join batches along their first axis."""
    if isinstance(rows[0], np.ndarray):
        return np.concatenate(rows)
    import torch

    return torch.cat(list(rows))


def collect(batches: Iterable[Array], unit: str, total: int | None) -> Array:
    """Join all rows of `batches`, with a progress bar if they take longer than two seconds."""
    rows = []
    with tqdm(desc=f"{unit}s", total=total, unit=unit, delay=2) as bar:
        for batch in batches:
            rows.append(batch)
            bar.update(len(batch))
    if not rows:
        raise ValueError(f"{unit}s is empty: give at least one.")
    return concatenate(rows)


def check_list(name: str, values: Sequence[Any]) -> None:
    if isinstance(values, str):
        raise ValueError(f"{name} is a list of texts, not the one text {values!r}.")
    if not len(values):
        raise ValueError(f"{name} is empty: give at least one.")


__all__ = [
    "Array",
    "Model",
    "as_batch",
    "check_list",
    "collect",
    "concatenate",
    "features",
    "is_on_cpu",
    "on_cpu",
    "tensor_type",
    "unit_length",
]
