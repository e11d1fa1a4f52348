"""Linear probes: logistic regression on frozen image features, as in the paper's appendix A.3."""

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.images import Exif
from ..data.rows import DataError, Rows
from ..embedding.identity import name_of
from ..metrics.classification import class_ranks, classification_outcomes
from ..metrics.outcomes import means
from ..utils.packages import require
from .embeddings import image_embeds
from .results import Result
from .tasks import class_details, class_names, settings_of, to_rows

MAX_ITERATIONS = 1000
EXPONENTS = np.linspace(-6, 6, 97)  # 8 steps for each power of ten, as in the paper
HELD_OUT = 0.2


def linear_probe(
    model: Any,
    processor: Any,
    train: Any,
    test: Any,
    *,
    validation: Any = None,
    shots: int | None = None,
    seed: int = 0,
    projected: bool = False,
    C: float | None = None,
    dataset: str | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    store: str | os.PathLike[str] | None = None,
    exif: Exif = "ignore",
) -> Result:
    """Fit scikit-learn's logistic regression on frozen image features, and measure its accuracy on other images.

    The inverse strength C of its regularization is searched on validation images, and the final fit uses those too.

    Args:
        model: A CLIP in evaluation mode.
        processor: Its processor.
        train: Labeled images, as `hf_clip.data.read.read_rows` reads them; or its rows.
        test: Labeled images of the same classes.
        validation: Labeled images to search C on; a fifth of `train`, in the shares of its classes, unless given.
        shots: Images to draw from each class of `train`; all unless given.
        seed: Seed of what is drawn.
        projected: Probe the embeddings; the features before the projection, as in the paper, unless True.
        C: Inverse strength of the regularization; searched between 1e-6 and 1e6 unless given.
        dataset: The name in results; that of `test` unless given.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.
        store: A folder that keeps the features of images for later calls.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.

    Returns:
        A result with lp_acc1, lp_acc5 (from five classes on), lp_mean_per_class_recall; `details["sweep"]` has the
        validation accuracy of each C.

    Raises:
        DataError: The classes differ, one has fewer images than `shots`, or there are too few images to search C.
        MissingPackageError: scikit-learn is not installed.

    Example:
        >>> linear_probe(model, processor, "photos/train", "photos/test", shots=16).metrics["lp_acc1"]
        0.95
    """
    require("sklearn", "eval", "linear_probe")
    parts = {"train": to_rows(train), "test": to_rows(test)}
    if validation is not None:
        parts["validation"] = to_rows(validation)
    names = class_names(parts["train"], None)
    for rows in parts.values():
        class_names(rows, None)
        if rows.labels != parts["train"].labels:
            raise DataError(f"{rows.name} has other classes than {parts['train'].name}: give the same, in one order")
    parts["train"] = draw_shots(parts["train"], shots, seed)
    targets = {part: np.array([row.label for row in rows]) for part, rows in parts.items()}
    # before any image is embedded: a search that cannot be made should cost nothing
    places = split(targets["train"], seed) if C is None and validation is None else None
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "store": store, "exif": exif}
    features = {
        part: image_embeds(model, processor, rows, projected=projected, normalize=False, **options).double().numpy()
        for part, rows in parts.items()
    }
    known = (features["train"], targets["train"])
    if places is not None:
        fitted, held = ((features["train"][part], targets["train"][part]) for part in places)
    elif validation is not None:
        fitted, held = known, (features["validation"], targets["validation"])
    sweep: dict[float, float] = {}
    settings: dict[str, Any] = {"shots": shots, "seed": seed, "projected": projected, "C": C}
    if C is None:
        C = search(lambda value: fit(*fitted, value).score(*held), sweep)
    if validation is not None:
        known = (np.concatenate([known[0], held[0]]), np.concatenate([known[1], held[1]]))
    logits = class_scores(fit(*known, C), features["test"], len(names))
    test_targets = torch.from_numpy(targets["test"])
    outcomes = classification_outcomes(class_ranks(logits, test_targets), test_targets, len(names))
    outcomes = {f"lp_{name}": outcome for name, outcome in outcomes.items()}
    details = class_details(logits.argmax(1), test_targets, names) | {"sweep": sorted(sweep.items()), "C": C}
    settings |= settings_of(model, processor, parts["test"], exif) | {
        "train_images": len(known[0]),
        "classes": len(names),
    }
    dataset = dataset or parts["test"].name
    return Result(dataset, "linear_probe", name_of(model), means(outcomes), outcomes, details, settings)


def draw_shots(rows: Rows, shots: int | None, seed: int) -> Rows:
    """Draw `shots` images of each class, all if it is None."""
    if shots is None:
        return rows
    targets = np.array([row.label for row in rows])
    rng, drawn = np.random.default_rng(seed), []
    for target, label in enumerate(rows.labels):
        places = np.flatnonzero(targets == target)
        if len(places) < shots:
            raise DataError(f"{label} has {len(places)} images in {rows.name}: choose fewer shots")
        drawn += np.sort(rng.permutation(places)[:shots]).tolist()
    return replace(rows, rows=[rows[place] for place in drawn])


def split(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the places of images into those to fit and a stratified fifth to search C on; single images are fitted."""
    from sklearn.model_selection import train_test_split

    counts = np.bincount(targets)
    several = np.flatnonzero(counts[targets] > 1)
    if len(np.unique(targets)) < 2 or not len(several):
        raise DataError("the training images are too few to hold some out: give validation images, or C")
    size = max((counts > 1).sum(), round(HELD_OUT * len(several)))
    fitted, held = train_test_split(several, test_size=size, stratify=targets[several], random_state=seed)
    return np.sort(np.append(fitted, np.flatnonzero(counts[targets] == 1))), np.sort(held)


def search(measure: Callable[[float], float], sweep: dict[float, float]) -> float:
    """Find the C of the best accuracy: seven powers of ten first, then half the step around the best, to 1/8 of one."""

    def at(place: int) -> float:
        value = float(10 ** EXPONENTS[place])
        if value not in sweep:
            sweep[value] = measure(value)
            bar.update()
        return sweep[value]

    with tqdm(desc="C", unit="fit", delay=2) as bar:
        step = 16
        best = max(range(0, len(EXPONENTS), step), key=at)
        while step > 1:
            step //= 2
            near = [place for place in (best - step, best, best + step) if 0 <= place < len(EXPONENTS)]
            best = max(near, key=lambda place: (at(place), -abs(place - best)))
    return float(10 ** EXPONENTS[best])


def fit(features: np.ndarray, targets: np.ndarray, C: float) -> Any:
    """Fit scikit-learn's logistic regression, as the paper did."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the paper stops at MAX_ITERATIONS too
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # few pictures of each are meant
        return LogisticRegression(C=C, max_iter=MAX_ITERATIONS).fit(features, targets)


def class_scores(classifier: Any, features: np.ndarray, classes: int) -> torch.Tensor:
    """Return scores (images, classes); a class that the classifier never saw scores lowest."""
    scores = classifier.decision_function(features)
    if scores.ndim == 1:  # of two classes, the second one's
        scores = np.stack([-scores, scores], 1)
    found = np.full((len(features), classes), -math.inf)
    found[:, classifier.classes_] = scores
    return torch.from_numpy(np.nan_to_num(found, neginf=np.finfo(np.float64).min))


__all__ = ["linear_probe"]
