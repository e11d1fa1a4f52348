"""Checks of tensors that metrics are computed from."""

from torch import Tensor

CHECKED_ROWS = 1024  # checked at once, so that a large tensor needs little memory beside itself


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError if a value is NaN or infinite."""
    if not all(part.isfinite().all() for part in values.split(CHECKED_ROWS)):
        raise ValueError(f"{name} hold NaN or infinite values: check the model's dtype and the images")


__all__ = ["check_finite"]
