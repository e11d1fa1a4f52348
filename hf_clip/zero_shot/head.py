"""A classifier without its model: it turns embeddings of images into scores of labels, and has a file format.

A head scores embeddings x of length 1, with the model's logit scale s, as

    logits = s * x @ class_embeds.T + bias + exp(sharpness * (x @ keys.T - 1)) @ values

The last two terms are for heads that were fitted to labeled images; the last is a cache of embedded examples
(Tip-Adapter, Zhang et al., 2022). Its mode says how logits become scores, and a calibration sharpens or softens them.
The `probe`, the embedding of a fixed text, tells by which model a file was made. A head that learned from images has
the `image_probe` too, as two models may share a text tower.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..data.images import Exif
from ..embedding.features import Array, Model, tensor_type
from ..embedding.identity import OtherModelError, image_probe, name_of, precision_of, same_model, text_probe
from ..utils.files import replacing
from ..utils.objects import check_fields, parse_json, parse_object
from ..utils.packages import explaining
from .canonical_texts import CANONICAL_TEXTS
from .numerics import (
    all_finite,
    detached,
    exp,
    filled,
    largest_of,
    like,
    log_sum_exp,
    no_gradients,
    sigmoid,
    softmax,
    with_column,
)
from .prompts import TEMPLATE, as_labels, as_templates, embed_labels, warn_of_one_label
from .scoring import zero_shot_logits

Mode = Literal["one", "any", "each"]
MODES: tuple[Mode, ...] = get_args(Mode)
NONE_LABEL = "none of these"
CLASSES_FORMAT = "hf_clip class embeddings 2"
READ_FORMATS = ("hf_clip class embeddings 1", CLASSES_FORMAT)  # 1 has neither mode nor calibration
HEAD_TENSORS = ("class_embeds", "background_embeds", "bias", "keys", "values")
CALIBRATION_TENSORS = ("offsets", "thresholds", "conformal_scores", "conformal_places")
CALIBRATION_FIELDS = {"temperature": int | float, "background_weight": int | float, "report": dict}
LIST_FIELDS: dict[str, Any] = {"labels": [str | int | float], "templates": [str], "background": [str]}
PROBES = ("probe", "image_probe")
CALIBRATION_DTYPES = ("float32", "float64", "int64")
LARGEST = 1e6


@dataclass(frozen=True)
class Calibration:
    """Corrections of the scores of a head, learned from labeled images.

    Args:
        temperature: Logits are divided by it.
        background_weight: The logit of the background is multiplied by it, in the modes "any" and "each".
        offsets: Added after the division (columns,).
        thresholds: The least score of each label (labels,) with which it is taken; the mode's default unless given.
        conformal_scores: How strange the right column of each labeled image was, 1 minus its uncalibrated probability
            (images,); empty in the mode "each".
        conformal_places: The right column of each (images,).
        report: What was measured: see `hf_clip.zero_shot.calibration.calibrate_head`.
    """

    temperature: float
    background_weight: float
    offsets: Array
    thresholds: Array | None
    conformal_scores: Array
    conformal_places: Array
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassifierHead:
    """Labels, their embeddings, and how logits become scores.

    Args:
        labels: The classes.
        templates: The prompts around them.
        class_embeds: (labels, dim); of length 1 where they are embeddings of texts.
        mode: "one", "any" or "each", as in `ZeroShotClassifier`.
        background: What else an image may show, in the modes "any" and "each".
        background_embeds: (background, dim) of length 1, else None.
        bias: (labels,), or None.
        keys: Embeddings of cached examples (examples, dim), or None.
        values: What each example adds to each label (examples, labels), or None.
        sharpness: How fast an example's part falls with its distance.
        calibration: What labeled images told about the scores, or None.
        exif: How the images that took part in the head were read; None where none did.
    """

    labels: list[Any]
    templates: list[str]
    class_embeds: Array
    mode: Mode = "one"
    background: list[str] = field(default_factory=list)
    background_embeds: Array | None = None
    bias: Array | None = None
    keys: Array | None = None
    values: Array | None = None
    sharpness: float = 1.0
    calibration: Calibration | None = None
    exif: Exif | None = None

    @property
    def columns(self) -> list[Any]:
        """Return the name of each score: the labels and, in the mode "any", NONE_LABEL."""
        return [*self.labels, NONE_LABEL] if self.mode == "any" else self.labels

    @property
    def has_learned(self) -> bool:
        """Return True if images took part in the head: it is calibrated, or more than embeddings of texts."""
        lengths = np.linalg.norm(detached(self.class_embeds), axis=-1)
        terms = (self.calibration, self.bias, self.keys)
        return any(term is not None for term in terms) or bool(np.abs(lengths - 1).max() > 1e-3)

    def check_exif(self, exif: Exif) -> None:
        """Raise ValueError if images took part in the head that were read in another way."""
        if self.exif not in (None, exif):
            raise ValueError(
                f"the classifier learned from images read with exif {self.exif}, not {exif}: pass "
                f'exif="{self.exif}" (--exif {self.exif}), or make it again'
            )

    def logits(self, model: Model, image_embeds: Array) -> Array:
        """Compute the logits (images, labels), float32, of embeddings of length 1."""
        with no_gradients(image_embeds):
            logits = zero_shot_logits(model, image_embeds, self.class_embeds)
            if self.bias is not None:
                logits = logits + like(self.bias, logits)
            if self.keys is not None and self.values is not None:
                likeness = image_embeds @ like(self.keys, image_embeds).T
                logits = logits + exp(self.sharpness * (likeness - 1)) @ like(self.values, logits)
        return logits

    def evidence(self, model: Model, image_embeds: Array) -> Array:
        """Compute the logits and, in "any" and "each", that of the background as a last column.

        For "any" that is the logarithm of the sum over the background, each text of which is then a class of its own
        (NegLabel, Jiang et al., 2024); for "each" it is their maximum.
        """
        logits = self.logits(model, image_embeds)
        if self.background_embeds is None:
            return logits
        background = zero_shot_logits(model, image_embeds, self.background_embeds)
        return with_column(logits, log_sum_exp(background) if self.mode == "any" else largest_of(background))

    def scores(self, evidence: Array) -> Array:
        """Turn evidence into probabilities (images, columns): over all columns, or in "each" of each label by itself.

        Without calibration, "each" gives the smallest probability of the label beside one text of the background (the
        relevancy of LERF, Kerr et al., 2023).
        """
        known = self.calibration
        if known is None:
            return probabilities(evidence, self.mode)
        return probabilities(evidence, self.mode, known.temperature, known.background_weight, known.offsets)

    def least_scores(self, threshold: float | None = None) -> Array:
        """Return the least score (labels,) with which each label is taken: `threshold`, or those of the calibration."""
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold:g}: give a probability, from 0 to 1")
        if threshold is None and self.calibration is not None and self.calibration.thresholds is not None:
            return self.calibration.thresholds
        default = 0.5 if self.mode == "each" else 0.0
        return filled(len(self.labels), default if threshold is None else threshold, self.class_embeds)

    def sets(self, evidence: Array, alpha: float, per_class: bool = False) -> list[list[Any]]:
        """Return the names of the columns of each image that cannot be excluded at `alpha`, best first.

        Columns are kept whose uncalibrated probability is not less than those of right columns of labeled images were
        (Sadinle et al., 2019). With `per_class` each column has a quantile of its own, and one of too few images is
        always kept.

        Raises:
            ValueError: The mode is "each", there is no calibration, or `alpha` is out of range.
        """
        if self.mode == "each":
            raise ValueError("prediction sets are of one right answer: calibrate in the mode one or any")
        if self.calibration is None:
            raise ValueError("prediction sets need labeled images: call calibrate first")
        with explaining("prediction sets"):
            import torch

            from ..metrics.conformal import conformal_quantile

        known = (evidence, self.calibration.conformal_scores, self.calibration.conformal_places)
        evidence, strangeness, places = map(torch.as_tensor, known)
        if per_class:
            groups = [strangeness[places == place] for place in range(len(self.columns))]
            most = torch.tensor([conformal_quantile(group, alpha) for group in groups])
        else:
            most = torch.tensor([conformal_quantile(strangeness, alpha)])
        kept = 1 - probabilities(evidence.double(), self.mode).float() <= most
        orders = evidence.argsort(dim=1, descending=True, stable=True).tolist()
        return [[self.columns[place] for place in order if row[place]] for order, row in zip(orders, kept, strict=True)]

    def to(self, device: Any) -> "ClassifierHead":
        """Return the head with its embeddings on another device; arrays have one place."""
        if isinstance(self.class_embeds, np.ndarray):
            return self
        tensors = {name: getattr(self, name) for name in HEAD_TENSORS}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})

    def on_arrays(self) -> "ClassifierHead":
        """Return the head with the tensors of its calibration as NumPy arrays, as its embeddings are."""
        if self.calibration is None:
            return self
        tensors = {name: getattr(self.calibration, name) for name in CALIBRATION_TENSORS}
        arrays = {name: detached(tensor) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, calibration=replace(self.calibration, **arrays))

    def save(self, path: str | os.PathLike, model: Model, processor: Any) -> None:
        """Write the head as safetensors, with the embeddings of fixed inputs, by which `load_head` knows the model."""
        path = Path(path)
        tensors = {name: getattr(self, name) for name in HEAD_TENSORS} | {"probe": text_probe(model, processor)}
        if self.has_learned:
            tensors["image_probe"] = image_probe(model, processor)[None]
        metadata = {
            "format": CLASSES_FORMAT,
            "labels": json.dumps(self.labels),
            "templates": json.dumps(self.templates),
            "mode": self.mode,
            "background": json.dumps(self.background),
            "sharpness": repr(self.sharpness),
            "model": name_of(model),
            "dtype": precision_of(model),
        }
        if self.calibration is not None:
            tensors |= {name: getattr(self.calibration, name) for name in CALIBRATION_TENSORS}
            numbers = ("temperature", "background_weight", "report")
            metadata["calibration"] = json.dumps({name: getattr(self.calibration, name) for name in numbers})
        if self.exif is not None:
            metadata["exif"] = self.exif
        path.parent.mkdir(parents=True, exist_ok=True)
        held = {name: detached(tensor) for name, tensor in tensors.items() if tensor is not None}
        with replacing(path) as work:
            save_file(held, work, metadata)


def make_head(
    model: Model,
    processor: Any,
    labels: Iterable[Any],
    templates: str | Iterable[str] = TEMPLATE,
    mode: Mode = "one",
    background: Iterable[str] = CANONICAL_TEXTS,
    class_embeds: Array | None = None,
) -> ClassifierHead:
    """Embed labels and, in the modes that have one, the background in the same templates."""
    labels, templates = as_labels(labels), as_templates(templates)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: choose one, any or each")
    if class_embeds is None:
        class_embeds = embed_labels(model, processor, labels, templates)
    if mode == "one":
        warn_of_one_label(labels)
        return ClassifierHead(labels, templates, class_embeds)
    if mode == "any" and NONE_LABEL in labels:
        raise ValueError(f"{NONE_LABEL!r} is added to the labels by the mode any: leave it out")
    background = as_labels(background, "background")
    if both := [text for text in background if text in labels]:
        raise ValueError(f"{both[0]!r} is a label and in the background: leave it out of one")
    embeds = embed_labels(model, processor, background, templates)
    return ClassifierHead(labels, templates, class_embeds, mode, background, embeds)


def load_head(path: str | os.PathLike, model: Model, processor: Any) -> ClassifierHead:
    """Read a head that `ClassifierHead.save` wrote, onto the model's device.

    Raises:
        OtherModelError: Another model made it.
        ValueError: The file holds no class embeddings, or is damaged.
    """
    try:
        with safe_open(path, tensor_type(model)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in READ_FORMATS:
                raise ValueError(f"{path} holds no class embeddings: write it with ZeroShotClassifier.save")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError) as error:  # the latter two for dtypes that NumPy lacks
        raise ValueError(f"{path} is no safetensors file of class embeddings: {error}") from error
    try:
        head = _parsed(tensors, metadata)
        known = {name: tensors[name] for name in ("probe", *(["image_probe"] if head.has_learned else []))}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    same_precision = metadata.get("dtype") == precision_of(model)
    probes = {"probe": text_probe, "image_probe": image_probe}
    if not all(
        same_model(probes[name](model, processor).reshape(1, -1), probe, same_precision)
        for name, probe in known.items()
    ):
        raise OtherModelError(
            f"the class embeddings in {path} were made by another model, {metadata.get('model')!r}, than "
            f"{name_of(model)!r}: make them again"
        )
    return head.to(model.device)


def _parsed(tensors: dict[str, Array], metadata: dict[str, str]) -> ClassifierHead:
    """Return the head of a file's contents; raise for contents that do not fit each other."""
    calibration = None
    if "calibration" in metadata:
        fields = parse_object(metadata["calibration"], CALIBRATION_FIELDS)
        parts = {name: tensors[name] for name in CALIBRATION_TENSORS if name != "thresholds"}
        calibration = Calibration(**fields | parts, thresholds=tensors.get("thresholds"))
    lists = {name: parse_json(metadata.get(name, "[]")) for name in LIST_FIELDS}
    check_fields(lists, LIST_FIELDS)
    head = ClassifierHead(
        labels=lists["labels"],
        templates=lists["templates"],
        mode=metadata.get("mode", "one"),  # type: ignore[arg-type]
        background=lists["background"],
        sharpness=float(metadata.get("sharpness", 1)),
        calibration=calibration,
        exif=metadata.get("exif"),  # type: ignore[arg-type]
        **{name: tensors.get(name) for name in HEAD_TENSORS},
    )
    for name, tensor in tensors.items():
        dtypes = CALIBRATION_DTYPES if name in CALIBRATION_TENSORS else ("float32",)
        if (dtype := str(tensor.dtype).removeprefix("torch.")) not in dtypes:
            raise ValueError(f"{name} is {dtype}, not {' or '.join(dtypes)}")
    if any(tensors[name].ndim != 2 or not all_finite(tensors[name]) for name in PROBES if name in tensors):
        raise ValueError("its probes are no embeddings")
    _check_shapes(head, tensors["probe"].shape[-1])
    return head


def _check_shapes(head: ClassifierHead, dim: int) -> None:
    """Raise ValueError for a head whose parts do not fit each other."""
    labels = len(head.labels)
    if len(set(head.labels)) < labels or not labels or head.class_embeds is None:
        raise ValueError("its labels are not all different, or it has none")
    examples = len(head.keys) if head.keys is not None else 0
    wanted: dict[str, Sequence[int]] = {
        "class_embeds": (labels, dim),
        "background_embeds": (len(head.background), dim),
        "bias": (labels,),
        "keys": (examples, dim),
        "values": (examples, labels),
    }
    held = {name: getattr(head, name) for name in HEAD_TENSORS}
    if head.calibration is not None:
        images = len(head.calibration.conformal_scores)
        wanted |= {
            "offsets": (len(head.columns),),
            "thresholds": (labels,),
            "conformal_scores": (images,),
            "conformal_places": (images,),
        }
        held |= {name: getattr(head.calibration, name) for name in CALIBRATION_TENSORS}
    for name, tensor in held.items():
        if tensor is not None and (tuple(tensor.shape) != tuple(wanted[name]) or not all_finite(tensor)):
            raise ValueError(f"{name} is {tuple(tensor.shape)}, {tuple(wanted[name])} fits, or not finite")
        # products of larger numbers with an embedding overflow float32
        if tensor is not None and name != "conformal_places" and len(tensor) and abs(tensor).max() > LARGEST:
            raise ValueError(f"{name} has numbers over {LARGEST:g}")
    if (head.keys is None) != (head.values is None) or not 0 <= head.sharpness <= LARGEST:
        raise ValueError(f"its keys come without values, or its sharpness is {head.sharpness}")
    if head.calibration is not None:
        known = head.calibration
        places = known.conformal_places
        if not (1 / LARGEST <= known.temperature <= LARGEST and abs(known.background_weight) <= LARGEST):
            raise ValueError("the calibration has numbers that no fit gives")
        if "int" not in str(places.dtype) or (places < 0).any() or (places >= len(head.columns)).any():
            raise ValueError("the calibration does not fit the labels")
    if head.mode not in MODES or (head.mode == "one") != (head.background_embeds is None):
        raise ValueError(f"the mode {head.mode!r} does not fit its background")
    if head.exif not in (None, *get_args(Exif)):
        raise ValueError(f"exif is {head.exif!r}")


def probabilities(
    evidence: Array,
    mode: Mode,
    temperature: float | Array = 1.0,
    background_weight: float | Array = 1.0,
    offsets: Array | None = None,
) -> Array:
    """Turn evidence (images, columns) into probabilities; see `ClassifierHead.scores`."""
    if mode == "each":
        evidence = evidence[:, :-1] - background_weight * evidence[:, -1:]
    elif mode == "any" and not (isinstance(background_weight, float) and background_weight == 1):
        evidence = with_column(evidence[:, :-1], background_weight * evidence[:, -1])
    if offsets is not None:
        evidence = evidence / temperature + like(offsets, evidence)
    return sigmoid(evidence) if mode == "each" else softmax(evidence)


__all__ = [
    "CLASSES_FORMAT",
    "NONE_LABEL",
    "Calibration",
    "ClassifierHead",
    "Mode",
    "load_head",
    "make_head",
    "probabilities",
]
