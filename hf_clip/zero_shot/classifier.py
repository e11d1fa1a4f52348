"""Zero-shot classification with any CLIP, ours or transformers' own; labels are encoded once (paper section 3.1)."""

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.images import Exif, ImageTally
from ..embedding.features import Array, Model, collect, on_cpu
from ..embedding.images import OnError, count_images, image_features
from ..utils.packages import explaining
from .canonical_texts import CANONICAL_TEXTS
from .decisions import Decision, decide
from .head import Calibration, ClassifierHead, Mode, load_head, make_head
from .prompts import TEMPLATE
from .scoring import check_model, ranked


class ZeroShotClassifier:
    """Score images against labels that are embedded once, when the classifier is made.

    Embeddings and logits are float32 whatever the model computes in. A repeated label gets a score at each of its
    places, as in the stock pipeline.

    The mode says what a score means:

    - "one": the probability that of all labels this one fits; they sum to 1 whatever the image shows. With one label
      alone every score is 1, and a warning says so.
    - "any": the same with one answer more, "none of these": that a text of the background fits.
    - "each": the probability that the image shows this label, whatever else it shows.

    Probabilities are as good as the model's until `calibrate` has seen labeled images.

    Args:
        model: A CLIP of both towers, of this package or transformers' own, in evaluation mode; or an exported CLIP.
        processor: Its processor.
        labels: The classes, in any iterable.
        templates: One or several texts with `{}` for the label; several are averaged as in the paper's section 3.1.4.
        mode: What scores mean: "one", "any" or "each".
        background: What else an image may show, for the modes "any" and "each"; put into the templates as labels are.
        class_embeds: Known embeddings of the labels, (labels, projection_dim), of length 1.

    Raises:
        TypeError: The model scores in another way than CLIP.
        ValueError: There are no labels, a template has no `{}`, or a text of the background is a label.

    Example:
        >>> classifier = ZeroShotClassifier(model, processor, ["cat", "dog"])
        >>> [[best, second]] = classifier("photo.jpg")  # {"label": "cat", "score": 0.9}, ...
    """

    def __init__(
        self,
        model: Model,
        processor: Any,
        labels: Iterable[str],
        templates: str | Iterable[str] = TEMPLATE,
        *,
        mode: Mode = "one",
        background: Iterable[str] = CANONICAL_TEXTS,
        class_embeds: Array | None = None,
    ):
        check_model(model)
        self.model, self.processor = model, processor
        head = make_head(model, processor, labels, templates, mode, background, class_embeds)
        self.head = head.to(model.device)

    @classmethod
    def from_head(cls, model: Model, processor: Any, head: ClassifierHead) -> "ZeroShotClassifier":
        """Make a classifier of a head, such as one that was fitted to labeled images."""
        check_model(model)
        classifier = cls.__new__(cls)
        classifier.model, classifier.processor, classifier.head = model, processor, head.to(model.device)
        return classifier

    @property
    def labels(self) -> list[Any]:
        """Return the labels."""
        return self.head.labels

    @property
    def templates(self) -> list[str]:
        """Return the templates."""
        return self.head.templates

    @property
    def class_embeds(self) -> Array:
        """Return the embeddings of the labels (labels, projection_dim)."""
        return self.head.class_embeds

    @property
    def calibration(self) -> Calibration | None:
        """Return the calibration with its `report`; None before `calibrate`."""
        return self.head.calibration

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        labels: Iterable[str],
        templates: str | Iterable[str] = TEMPLATE,
        *,
        mode: Mode = "one",
        background: Iterable[str] = CANONICAL_TEXTS,
        **loading: Any,
    ) -> "ZeroShotClassifier":
        """Load the model and its processor by `load_clip`, and make the classifier.

        Args:
            source: One of the nine names, a checkpoint file, a folder, or a Hub id.
            labels: The classes.
            templates: One or several texts with `{}` for the label.
            mode: What scores mean: "one", "any" or "each".
            background: What else an image may show, for the modes "any" and "each".
            **loading: Other options of `load_clip`: `device`, `dtype`, `optimize`, `revision` and so on.
        """
        from ..loading import load_clip

        model, processor = load_clip(source, **loading)
        return cls(model, processor, labels, templates, mode=mode, background=background)

    @classmethod
    def load(cls, path: str | os.PathLike, model: Model, processor: Any) -> "ZeroShotClassifier":
        """Read a classifier that `save` wrote, with its mode and calibration.

        Raises:
            OtherModelError: Another model made the embeddings.
            ValueError: The file holds no class embeddings, or is damaged.
        """
        return cls.from_head(model, processor, load_head(path, model, processor))

    def save(self, path: str | os.PathLike) -> None:
        """Write class embeddings, labels, templates, mode and calibration as safetensors.

        The embedding of a fixed text goes with them: `load` tells by it whether the model is the same.
        """
        self.head.save(path, self.model, self.processor)

    def calibrate(
        self,
        images: Any,
        labels: Iterable[Any],
        *,
        precision: float | None = None,
        recall: float | None = None,
        batch_size: int = 16,
        workers: int | None = None,
        exif: Exif = "ignore",
    ) -> "ZeroShotClassifier":
        """Return a classifier whose scores, and thresholds if wanted, are calibrated by labeled images.

        Probabilities of the result are as often right as they say, on images like these. This classifier stays as it
        is. `calibration.report` of the result holds what was measured, and sentences about what so many images cannot
        tell.

        Args:
            images: Images, as `embed_images` takes them.
            labels: What each shows: a label; in the modes "any" and "each" also None, or "none of these", for none of
                the labels; and in "each" also a list of labels. A label that is not listed counts as absent.
            precision: Choose thresholds at which this share of the labels given is right.
            recall: Choose thresholds at which this share of labels is found; give only one of the two.
            batch_size: Images per pass through the model.
            workers: Threads that read images.
            exif: As in `embed_images`; the result, and the file that `save` writes, take images that are read in the
                same way.

        Raises:
            ValueError: The labels do not fit the images or the mode, or thresholds cannot be reached.

        Example:
            >>> calibrated = classifier.calibrate(["one.jpg", "two.jpg"], ["cat", "dog"], precision=0.95)
            >>> calibrated.save("pets.safetensors")
        """
        with explaining("calibrate"):
            import torch

            from .calibration import calibrate_head, targets_of

        targets = targets_of(self.labels, labels)
        evidence = torch.as_tensor(self._evidence(images, batch_size, workers, exif))
        head = calibrate_head(self.head.to("cpu"), evidence, targets, precision=precision, recall=recall)
        if isinstance(self.class_embeds, np.ndarray):
            head = head.on_arrays()
        head = replace(head, exif=exif)
        return self.from_head(self.model, self.processor, head)

    def __call__(
        self,
        images: Any,
        top_k: int | None = 5,
        *,
        batch_size: int = 16,
        workers: int | None = None,
        exif: Exif = "ignore",
    ) -> list[list[dict[str, Any]]]:
        """Rank the labels of each image, the best `top_k` or all, as `{"label", "score"}` with probabilities.

        `embed_images` describes `images` and `exif`.
        """
        scores = self.scores(images, batch_size=batch_size, workers=workers, exif=exif)
        return [ranked(row, self.head.columns, top_k) for row in scores]

    def logits(self, images: Any, *, batch_size: int = 16, workers: int | None = None, exif: Exif = "ignore") -> Array:
        """Compute logits (images, labels), float32 on the CPU; in the mode "one" their softmax are probabilities."""
        return self._evidence(images, batch_size, workers, exif)[:, : len(self.labels)]

    def scores(self, images: Any, *, batch_size: int = 16, workers: int | None = None, exif: Exif = "ignore") -> Array:
        """Compute probabilities (images, labels), float32 on the CPU; "none of these" is one more column in "any"."""
        return self.head.scores(self._evidence(images, batch_size, workers, exif))

    def sets(
        self,
        images: Any,
        alpha: float = 0.1,
        *,
        per_class: bool = False,
        batch_size: int = 16,
        workers: int | None = None,
        exif: Exif = "ignore",
    ) -> list[list[Any]]:
        """Return for each image the labels that cannot be excluded; the right one is among them at least 1 - `alpha`.

        That holds on average over images that are exchangeable with those of `calibrate`, for any model (split
        conformal prediction). An empty set means that every label would be unusual.

        Args:
            images: Images, as `embed_images` takes them.
            alpha: The share of images whose right label may be missing.
            per_class: Keep the promise for the images of each label; a label of too few images is in every set.
            batch_size: Images per pass through the model.
            workers: Threads that read images.
            exif: As in `embed_images`.

        Returns:
            Lists of labels, best first; in the mode "any" with "none of these".

        Raises:
            ValueError: The classifier is not calibrated, its mode is "each", or `alpha` is not between 0 and 1.
        """
        return self.head.sets(self._evidence(images, batch_size, workers, exif), alpha, per_class)

    def stream(
        self,
        images: Any,
        top_k: int | None = 5,
        *,
        batch_size: int = 16,
        workers: int | None = None,
        on_error: OnError | None = None,
        exif: Exif = "ignore",
    ) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        """Yield each image as it was passed, and its ranked labels, in order, as images arrive.

        `iter_image_embeds` describes `images`, `on_error` and `exif`.
        """
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "on_error": on_error, "exif": exif}
        for item, decision in self.decisions(images, top_k, **options):
            yield item, decision.scores

    def decisions(
        self,
        images: Any,
        top_k: int | None = 5,
        *,
        threshold: float | None = None,
        alpha: float | None = None,
        batch_size: int = 16,
        workers: int | None = None,
        on_error: OnError | None = None,
        exif: Exif = "ignore",
        tally: ImageTally | None = None,
    ) -> Iterator[tuple[Any, Decision]]:
        """Yield each image as it was passed, and the decision about it, in order, as images arrive.

        Args:
            images: Images, as `iter_image_embeds` takes them.
            top_k: How many scores a decision lists.
            threshold: The least score with which a label is taken: what `calibrate` found, else 0.5 in the mode "each"
                and 0 in the others, unless given.
            alpha: Add the set of labels that cannot be excluded, as `sets` does.
            batch_size: Images per pass through the model.
            workers: Threads that read images.
            on_error: As in `iter_image_embeds`.
            exif: As in `embed_images`.
            tally: Counts images that the model sees in another way than people; a warning does without one.

        Yields:
            The image and a decision: the labels taken, the scores, the margin and the reason.

        Raises:
            ValueError: The threshold is no probability, or there are no sets: see `sets`.
        """
        least = self.head.least_scores(threshold)
        for items, evidence in self._batches(images, batch_size, workers, on_error, exif, tally):
            sets = itertools.repeat(None) if alpha is None else self.head.sets(evidence, alpha)
            for item, row, found in zip(items, self.head.scores(evidence), sets, strict=False):
                yield item, replace(decide(self.head, row, least, top_k), prediction_set=found)

    def _evidence(self, images: Any, batch_size: int, workers: int | None, exif: Exif) -> Array:
        batches = self._batches(images, batch_size, workers, None, exif, None)
        return collect((evidence for _, evidence in batches), "image", count_images(images))

    def _batches(
        self,
        images: Any,
        batch_size: int,
        workers: int | None,
        on_error: OnError | None,
        exif: Exif,
        tally: ImageTally | None,
    ) -> Iterator:
        self.head.check_exif(exif)
        options: dict[str, Any] = {"on_error": on_error, "exif": exif, "tally": tally}
        for items, embeds in image_features(self.model, self.processor, images, batch_size, workers, **options):
            yield items, on_cpu(self.head.evidence(self.model, embeds))


__all__ = ["ZeroShotClassifier"]
