"""Unit vectors like those of images and texts, without a model."""

import numpy as np


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def two_cones(images: int, texts: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw images and texts in two narrow cones that lie apart, as CLIP's do: cosines across are small."""
    rng = np.random.default_rng(seed)
    axes = unit(rng.standard_normal((2, dim)))
    topics = rng.standard_normal((32, dim))
    cones = []
    for count, axis, width in ((images, axes[0], 0.8), (texts, axes[1], 0.5)):
        about = topics[rng.integers(0, len(topics), count)] + 1.5 * rng.standard_normal((count, dim))
        cones.append(unit(axis + width * unit(about)))
    return cones[0], cones[1]
