"""Peaks of maps, and boxes around the regions where a map is high."""

from typing import Any

import torch

from ..utils.packages import require

THRESHOLD = 0.5
MIN_REGION = 0.001  # share of the map's area


def find_boxes(map: torch.Tensor, threshold: float = THRESHOLD) -> list[dict[str, Any]]:
    """Find boxes around the connected regions where a map of `where` is high.

    Boxes are rough: a map has few positions, and its values are not probabilities.

    Args:
        map: (height, width); NaN outside the crop of the model.
        threshold: The share of the map's highest value that all places of a region reach.

    Returns:
        A dictionary for each region, highest score first: `box` (left, top, right, bottom) in pixels, and `score`, its
        highest value. Regions smaller than a thousandth of the map are left out. A map without a positive value has no
        regions.

    Raises:
        ValueError: `map` does not have two axes, or `threshold` is not between 0 and 1.
        MissingPackageError: SciPy is not installed.

    Example:
        >>> for box in hf_clip.find_boxes(hf_clip.where(model, processor, "photo.jpg", ["a cat"])[0]):
        ...     print(box["score"], box["box"])
    """
    require("scipy", "boxes", "finding boxes")
    from scipy.ndimage import find_objects, label, maximum

    if map.ndim != 2:
        raise ValueError(f"the map has {map.ndim} axes, not height and width: pass one of the maps of where()")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}, not between 0 and 1: it is a share of the map's highest value")
    values = map.nan_to_num(0).numpy()
    if values.max() <= 0:
        return []
    regions, count = label(values >= threshold * values.max(), structure=[[1] * 3] * 3)
    scores = maximum(values, regions, range(1, count + 1))
    boxes = [
        {"box": (columns.start, rows.start, columns.stop, rows.stop), "score": float(score)}
        for number, ((rows, columns), score) in enumerate(zip(find_objects(regions), scores, strict=True), start=1)
        if (regions[rows, columns] == number).sum() >= MIN_REGION * values.size
    ]
    return sorted(boxes, key=lambda found: -found["score"])


def find_peak(map: torch.Tensor) -> tuple[int, int]:
    """Return x and y of the highest value of a map (height, width); among equal values, of the nearest to the middle.

    Equal values are common: a map is flat between the outermost positions and the edge.
    """
    values = map.nan_to_num(-torch.inf)
    places = (values == values.max()).nonzero()
    middle = torch.tensor(map.shape) / 2
    y, x = places[(places + 0.5 - middle).norm(dim=1).argmin()].tolist()
    return x, y


__all__ = ["THRESHOLD", "find_boxes", "find_peak"]
