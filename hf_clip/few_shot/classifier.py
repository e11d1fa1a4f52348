"""A classifier from a few pictures of each class and the texts of their names."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.images import Exif
from ..embedding.identity import name_of
from ..evaluation.embeddings import image_embeds
from ..evaluation.probe import draw_shots
from ..evaluation.results import Result
from ..evaluation.tasks import chosen_templates, class_names, settings_of, to_rows
from ..metrics.outcomes import means, paired_difference
from ..utils.packages import require
from ..utils.text import listing
from ..zero_shot.classifier import ZeroShotClassifier
from ..zero_shot.head import ClassifierHead
from ..zero_shot.prompts import embed_labels
from ..zero_shot.scoring import check_model, zero_shot_logits
from .fitting import AUTO, CHOSEN, ZERO_SHOT, Fitted, check_classes, check_head, check_spread, fit_head
from .heads import CacheHead
from .selection import HELD_OUT_PARTS


class FewShotClassifier(ZeroShotClassifier):
    """Score images by the texts of labels and by a few known pictures of each.

    `fit` makes one. It is saved, loaded and used as a `ZeroShotClassifier` is, and may be calibrated as one.

    Args:
        *args: Those of `ZeroShotClassifier`, which makes a classifier of texts alone.
        **options: Those of `ZeroShotClassifier`.

    Example:
        >>> classifier = FewShotClassifier.fit(model, processor, "photos")
        >>> classifier.save("photos.safetensors")
        >>> classifier.result.metrics["acc1"]
        0.93
    """

    # how the heads did on pictures that were held out; None of a classifier that was loaded
    result: Result | None = None

    @classmethod
    def fit(
        cls,
        model: PreTrainedModel,
        processor: Any,
        data: Any,
        *,
        labels: Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        head: str = AUTO,
        shots: int | None = None,
        folds: int = HELD_OUT_PARTS,
        seed: int = 0,
        dataset: str | None = None,
        batch_size: int = 16,
        workers: int | None = None,
        store: str | os.PathLike[str] | None = None,
        exif: Exif = "ignore",
    ) -> "FewShotClassifier":
        """Fit a head to labeled pictures, and choose its weight beside the texts on pictures that are held out.

        The heads are `prototypes` (the mean of each class), `ridge` and `logistic` regression, and `cache`
        (Tip-Adapter). A class with one picture keeps it for the fit. Where no class has two, nothing can be held out:
        the weight is 0.5 then, and `result` has no metrics.

        Args:
            model: A CLIP of both towers, in evaluation mode.
            processor: Its processor.
            data: Labeled images, as `hf_clip.data.read.read_rows` reads them; or its rows.
            labels: A name for each class, in the order of the data.
            templates: Texts with `{}` for the name; those of the data, else "a photo of a {}.", unless given.
            head: The head, or "auto" for the one of the least log loss on pictures that are held out.
            shots: Images to draw from each class; all unless given.
            folds: The number of parts that are held out in turn.
            seed: Seed of the parts, and of the images that are drawn.
            dataset: The name in the result; that of the data by default.
            batch_size: Images per pass through the model.
            workers: Threads that prepare images.
            store: A folder that keeps the embeddings of images for later calls.
            exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original. The classifier,
                and the file that `save` writes, take images that are read in the same way.

        Returns:
            The classifier. `result` has the accuracy of the choice (acc1), of the texts alone, of a linear probe
            without texts and of each head, all on pictures that were held out.

        Raises:
            DataError: There is one class, or a class has no picture.
            ValueError: There is no such head, or all embeddings are equal.
            MissingPackageError: scikit-learn is not installed.
        """
        require("sklearn", "eval", "FewShotClassifier")
        check_model(model)
        check_head(head)
        if folds < 2:
            raise ValueError(f"folds is {folds}: give at least 2")
        rows = draw_shots(to_rows(data), shots, seed)
        names, templates = class_names(rows, labels), chosen_templates(rows, templates)
        targets = torch.tensor([row.label for row in rows])
        check_classes(rows.name, names, targets)
        class_embeds = embed_labels(model, processor, names, templates)
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "store": store, "exif": exif}
        embeds = image_embeds(model, processor, rows, **options)
        check_spread(rows.name, embeds)
        fitted = fit_head(zero_shot_logits(model, embeds, class_embeds).cpu(), embeds, targets, head, folds, seed)
        result = Result(
            dataset or rows.name,
            "few_shot",
            name_of(model),
            *_measured(fitted),
            _details(fitted, names, targets),
            settings_of(model, processor, rows, exif)
            | {"classes": len(names), "shots": shots, "seed": seed, "folds": folds},
        )
        scale = model.logit_scale.exp().item()
        joined = ClassifierHead(names, templates, **_joined(fitted, class_embeds, scale), exif=exif)
        classifier = cls.from_head(model, processor, joined)
        assert isinstance(classifier, cls)
        classifier.result = result
        return classifier


def _joined(fitted: Fitted, class_embeds: torch.Tensor, scale: float) -> dict[str, Any]:
    """Return the tensors of a classifier's head whose logits are the blend of the texts and the fitted head."""
    texts, pictures, head = fitted.blend.of_texts * class_embeds, fitted.blend.of_pictures, fitted.head
    if isinstance(head, CacheHead):
        return {
            "class_embeds": texts,
            "keys": head.keys,
            "values": pictures * head.values,
            "sharpness": head.sharpness,
        }
    return {"class_embeds": texts + pictures / scale * head.weight, "bias": pictures * head.bias}


def _measured(fitted: Fitted) -> tuple[dict[str, float], dict[str, Any]]:
    """Return metrics and outcomes by the names that results have."""
    outcomes = {"acc1" if name == CHOSEN else f"{name}_acc1": hits for name, hits in fitted.hits.items()}
    return means(outcomes), outcomes


def _details(fitted: Fitted, names: Sequence[str], targets: torch.Tensor) -> dict[str, Any]:
    counts = torch.bincount(targets, minlength=len(names)).tolist()
    return {
        "head": fitted.name,
        "blend": fitted.blend._asdict(),
        "weights": {name: blend.weight for name, blend in fitted.blends.items()},
        # of the choice minus each other, with its interval
        "differences": {
            name: paired_difference(hits, fitted.hits[CHOSEN]) for name, hits in fitted.hits.items() if name != CHOSEN
        },
        "single_pictures": [name for name, count in zip(names, counts, strict=True) if count == 1],
        "held_out": len(fitted.hits[CHOSEN].hits) if fitted.hits else 0,
    }


def verdicts(result: Result) -> list[str]:
    """Put the choice of a few-shot result in sentences, and the differences that its pictures are too few to tell."""
    details = result.details
    name, weight = details["head"], details["blend"]["weight"]
    if not details["held_out"]:
        return [
            f"chosen: {name}, with a weight of {weight:g}, by default: no class has two pictures, so nothing could be "
            "held out, and the accuracy is unknown"
        ]
    lines = [f"chosen: {name}, with a weight of {weight:g} for the pictures, {1 - weight:g} for the texts"]
    difference, low, high = details["differences"][ZERO_SHOT]
    if not low <= 0 <= high:
        lines.append(f"accuracy {difference:+.4f} [{low:+.4f}, {high:+.4f}] beside the texts alone")
    alike = [
        other.replace("_", " ")
        for other, (_, low, high) in details["differences"].items()
        if low <= 0 <= high and other != name
    ]
    if alike:
        lines.append(f"{details['held_out']:,} pictures held out are too few to tell it apart from: {listing(alike)}")
    if single := details["single_pictures"]:
        lines.append(f"not measured, as one picture is too few to hold it out: {listing(single, 3)}")
    return lines


__all__ = ["FewShotClassifier", "verdicts"]
