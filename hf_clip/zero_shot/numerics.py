"""The functions that heads need, of PyTorch's tensors and of NumPy arrays."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ..embedding.features import Array


def no_gradients(array: Array) -> AbstractContextManager:
    """Return the context in which PyTorch records no gradients; arrays have none."""
    if isinstance(array, np.ndarray):
        return nullcontext()
    import torch

    return torch.no_grad()


def like(values: Array, other: Array) -> Array:
    """Return `values` as an array of the kind, dtype and device of `other`."""
    if isinstance(other, np.ndarray):
        return np.asarray(values, other.dtype)
    return values.to(other)


def exp(array: Array) -> Array:
    """Return e to the power of each number."""
    return np.exp(array) if isinstance(array, np.ndarray) else array.exp()


def log_sum_exp(array: Array) -> Array:
    """Return the logarithm of the sum of exponentials along the last axis."""
    if not isinstance(array, np.ndarray):
        return array.logsumexp(-1)
    largest = array.max(-1)
    return largest + np.log(np.exp(array - largest[..., None]).sum(-1))


def largest_of(array: Array) -> Array:
    """Return the largest number along the last axis."""
    return array.max(-1) if isinstance(array, np.ndarray) else array.max(-1).values


def with_column(array: Array, column: Array) -> Array:
    """Append a column (N,) to an array (N, columns)."""
    if isinstance(array, np.ndarray):
        return np.column_stack([array, column])
    import torch

    return torch.cat([array, column[:, None]], 1)


def softmax(array: Array) -> Array:
    """Return probabilities along the last axis."""
    if not isinstance(array, np.ndarray):
        return array.softmax(-1)
    powers = np.exp(array - array.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(array: Array) -> Array:
    """Return the logistic function of each number."""
    if not isinstance(array, np.ndarray):
        return array.sigmoid()
    return (0.5 * (1 + np.tanh(0.5 * array))).astype(array.dtype)


def filled(count: int, value: float, other: Array) -> Array:
    """Return an array (count,) of one value, float32 on the CPU, of the kind of `other`."""
    if isinstance(other, np.ndarray):
        return np.full(count, value, np.float32)
    import torch

    return torch.full((count,), value)


def descending(array: Array) -> list[int]:
    """Return the places of numbers (N,), the largest first; equal ones keep their order."""
    if isinstance(array, np.ndarray):
        return np.argsort(-array, kind="stable").tolist()
    return array.argsort(descending=True, stable=True).tolist()


def all_finite(array: Array) -> bool:
    """Return True if no number is infinite or NaN."""
    return bool((np.isfinite(array) if isinstance(array, np.ndarray) else array.isfinite()).all())


def detached(array: Array) -> Any:
    """Return the numbers as a contiguous NumPy array."""
    return np.ascontiguousarray(array if isinstance(array, np.ndarray) else array.detach().cpu())


__all__ = [
    "all_finite",
    "descending",
    "detached",
    "exp",
    "filled",
    "largest_of",
    "like",
    "log_sum_exp",
    "no_gradients",
    "sigmoid",
    "softmax",
    "with_column",
]
