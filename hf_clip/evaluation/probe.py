"""Linear probes on frozen features, as in the paper's appendix A.3."""

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.rows import DataError, Rows
from ..embedding.identity import name_of
from ..utils.packages import require
from .embeddings import image_embeds
from .metrics import class_ranks, classification_outcomes
from .results import Result
from .tasks import as_rows, class_details, class_names, settings_of

MAX_ITERATIONS = 1000
TOLERANCE = 1e-4  # of the largest gradient, as in scikit-learn
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
    solver: str = "sklearn",
    dataset: str | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Result:
    """Fit a logistic regression on frozen image features, and count its hits on other images.

    Its strength C is searched on validation images, and the final fit uses those too.

    Args:
        model: A CLIP in evaluation mode.
        processor: Its processor.
        train: Labeled images, as `hf_clip.data.read.read_rows` reads them; or its rows.
        test: Labeled images of the same classes.
        validation: Labeled images to search C on; a fifth of each class of `train` unless given.
        shots: Images to draw from each class of `train`; all unless given.
        seed: Seed of what is drawn.
        projected: Probe the embeddings; the features before the projection, as in the paper, unless True.
        C: Inverse strength of the regularization; searched between 1e-6 and 1e6 unless given.
        solver: "sklearn", as in the paper, or "torch": the same objective by L-BFGS on the model's device, without
            scikit-learn.
        dataset: The name in results; that of `test` unless given.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.
        store: A folder that keeps the features of images for later calls.

    Returns:
        A result with lp_acc1, lp_acc5 (from five classes on), lp_mean_per_class_recall; `details["sweep"]` has the
        validation accuracy of each C.

    Raises:
        DataError: The classes differ, or one has fewer images than `shots`.
        MissingPackageError: scikit-learn is not installed, and `solver` is "sklearn".
        ValueError: `solver` is neither.

    Example:
        >>> linear_probe(model, processor, "photos/train", "photos/test", shots=16).metrics["lp_acc1"]
        0.95
    """
    fit = solver_of(solver, model.device)
    parts = {"train": as_rows(train), "test": as_rows(test)}
    if validation is not None:
        parts["validation"] = as_rows(validation)
    names = class_names(parts["train"], None)
    for rows in parts.values():
        class_names(rows, None)
        if rows.labels != parts["train"].labels:
            raise DataError(f"{rows.name} has other classes than {parts['train'].name}: give the same, in one order")
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "store": store, "normalize": False}
    features, targets = {}, {}
    for part, rows in parts.items():
        features[part] = image_embeds(model, processor, rows, projected=projected, **options).double().numpy()
        targets[part] = np.array([row.label for row in rows])
    drawn = draw_shots(targets["train"], shots, seed, parts["train"])
    known, known_targets = features["train"][drawn], targets["train"][drawn]
    if "validation" in parts:
        fitted, held = (known, known_targets), (features["validation"], targets["validation"])
    else:
        place = split(known_targets, seed)
        fitted, held = ((known[part], known_targets[part]) for part in (~place, place))
    sweep: dict[float, float] = {}
    if C is None:
        C = search(lambda value: accuracy(fit(*fitted, value), *held), sweep)
    if "validation" in parts:
        known, known_targets = (np.concatenate(pair) for pair in zip((known, known_targets), held, strict=True))
    logits = class_scores(fit(known, known_targets, C), features["test"], len(names))
    test_targets = torch.from_numpy(targets["test"])
    outcomes = classification_outcomes(class_ranks(logits, test_targets), test_targets, len(names))
    outcomes = {f"lp_{name}": outcome for name, outcome in outcomes.items()}
    details = class_details(logits.argmax(1), test_targets, names) | {"sweep": sorted(sweep.items()), "C": C}
    settings = settings_of(model, processor, parts["test"])
    settings |= {"train_images": len(known), "shots": shots, "seed": seed, "projected": projected, "solver": solver}
    metrics = {name: outcome.mean for name, outcome in outcomes.items()}
    return Result(dataset or parts["test"].name, "linear_probe", name_of(model), metrics, outcomes, details, settings)


def draw_shots(targets: np.ndarray, shots: int | None, seed: int, rows: Rows) -> np.ndarray:
    """Draw the places of `shots` images of each class."""
    if shots is None:
        return np.arange(len(targets))
    rng, drawn = np.random.default_rng(seed), []
    for target in range(len(rows.labels)):
        places = np.flatnonzero(targets == target)
        if len(places) < shots:
            raise DataError(f"{rows.labels[target]} has {len(places)} images in {rows.name}: choose fewer shots")
        drawn.append(np.sort(rng.permutation(places)[:shots]))
    return np.concatenate(drawn)


def split(targets: np.ndarray, seed: int) -> np.ndarray:
    """Mark the images to hold out: a fifth of each class, at least one where it has two."""
    rng, held = np.random.default_rng(seed), np.zeros(len(targets), bool)
    for target in np.unique(targets):
        places = np.flatnonzero(targets == target)
        count = max(1, round(HELD_OUT * len(places))) if len(places) > 1 else 0
        held[rng.permutation(places)[:count]] = True
    if not held.any() or len(np.unique(targets[~held])) < 2:
        raise DataError("the training images are too few to hold some out: give validation images, or C")
    return held


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


def solver_of(name: str, device: torch.device) -> Callable[[np.ndarray, np.ndarray, float], Any]:
    """Return what fits a classifier to features, targets and a C."""
    if name == "sklearn":
        require("sklearn", "eval", "linear_probe with the solver sklearn")
        return fit_sklearn
    if name == "torch":
        return partial(fit_torch, device=device)
    raise ValueError(f"there is no solver {name!r}: choose sklearn or torch")


def fit_sklearn(features: np.ndarray, targets: np.ndarray, C: float) -> Any:
    """Fit scikit-learn's logistic regression, as the paper did."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the paper stops at MAX_ITERATIONS too
        return LogisticRegression(C=C, max_iter=MAX_ITERATIONS).fit(features, targets)


@dataclass(frozen=True)
class LinearClassifier:
    """Hold a fitted logistic regression under scikit-learn's names: weight (classes, dim) and bias (classes,)."""

    classes_: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Return scores (images, classes)."""
        return features @ self.weight.T + self.bias

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the class of the highest score of each image."""
        return self.classes_[self.decision_function(features).argmax(1)]


def fit_torch(features: np.ndarray, targets: np.ndarray, C: float, device: torch.device) -> LinearClassifier:
    """Fit the multinomial logistic regression that scikit-learn fits, by L-BFGS on all images at once."""
    classes, places = np.unique(targets, return_inverse=True)
    dtype = torch.float32 if device.type == "mps" else torch.float64  # which MPS lacks
    inputs, labels = torch.from_numpy(features).to(device, dtype), torch.from_numpy(places).to(device)
    weight = torch.zeros(len(classes), inputs.shape[1], device=device, dtype=dtype, requires_grad=True)
    bias = torch.zeros(len(classes), device=device, dtype=dtype, requires_grad=True)
    # scikit-learn fits one vector for two classes: the difference of ours, whose squares sum to half of its square
    penalty = (2 if len(classes) == 2 else 1) / (2 * C * len(labels))
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=MAX_ITERATIONS, tolerance_grad=TOLERANCE, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        errors = torch.nn.functional.cross_entropy(inputs @ weight.T + bias, labels)
        value = errors + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return LinearClassifier(classes, weight.detach().double().cpu().numpy(), bias.detach().double().cpu().numpy())


def accuracy(classifier: Any, features: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of right answers."""
    return float(np.mean(classifier.predict(features) == targets))


def class_scores(classifier: Any, features: np.ndarray, classes: int) -> torch.Tensor:
    """Return scores (images, classes); a class that the classifier never saw scores lowest."""
    scores = classifier.decision_function(features)
    if scores.ndim == 1:  # of two classes, the second one's
        scores = np.stack([-scores, scores], 1)
    found = np.full((len(features), classes), -math.inf)
    found[:, classifier.classes_] = scores
    return torch.from_numpy(np.nan_to_num(found, neginf=np.finfo(np.float64).min))


__all__ = ["linear_probe"]
