"""Split-conformal prediction: a threshold on strangeness that new right answers seldom exceed (Vovk et al., 2005)."""

import math

import torch
from torch import Tensor

from .checks import check_finite


def conformal_quantile(strangeness: Tensor, alpha: float) -> float:
    """Return the least strangeness that all but the share `alpha` of new right answers do not exceed.

    It is the ceil((n + 1)(1 - alpha))-th smallest of n. If new images are exchangeable with these, the probability of a
    new right answer at or below it is at least 1 - alpha, whatever the model is, and at most 1 / (n + 1) more unless
    values are equal.

    Args:
        strangeness: How strange the right answers of labeled images were (N,), by scores that did not see them.
        alpha: The share that may be missed.

    Returns:
        The value; infinity if the images are too few for `alpha`.

    Raises:
        ValueError: `alpha` is not between 0 and 1, or a value is NaN or infinite.

    Example:
        >>> conformal_quantile(torch.arange(9.0), 0.2)
        7.0
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha:g}: give a share between 0 and 1, such as 0.1")
    check_finite("strangeness", strangeness)
    # rounded first: 10 * (1 - 0.1) is 9.000000000000002 in some orders of operations
    place = math.ceil(round((len(strangeness) + 1) * (1 - alpha), 9))
    return math.inf if place > len(strangeness) else torch.sort(strangeness).values[place - 1].item()


__all__ = ["conformal_quantile"]
