"""transformers' zero-shot image classification pipeline; labels are encoded once, not once per image."""

import os
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import get_worker_info
from transformers import BatchFeature
from transformers import ZeroShotImageClassificationPipeline as StockPipeline
from transformers.image_utils import load_image
from transformers.utils import logging

from ..embedding.features import check_list, features
from ..embedding.identity import OtherModelError
from ..model.image_reading_hf_clip import naming
from .cache import ClassEmbeddingCache, cache_key
from .classifier import ZeroShotClassifier
from .head import ClassifierHead, load_head
from .prompts import as_labels, as_templates, embed_labels, warn_of_one_label
from .scoring import check_model, ranked

logger = logging.get_logger(__name__)
STOCK_TEMPLATES = ("This is a photo of {}.",)
TEXT_OPTIONS = ("hypothesis_template", "tokenizer_kwargs")
Classifier = str | os.PathLike | ZeroShotClassifier


class Numbered(NamedTuple):
    """An image with its place in a list, which errors name."""

    place: int
    image: Any


class ZeroShotImageClassificationPipeline(StockPipeline):
    """Classify images as the stock pipeline does, and keep the embeddings of labels from call to call.

    Each call checks once whether the tokenizer or a weight of the model has changed since the last call, and if so
    encodes its labels again; only weights written through `.data` go unnoticed, and `cache.clear()` forgets all labels.
    Threads may share a pipeline. Scores equal the stock pipeline's within 1e-5 in float32.

    `classifier=` names a file that `ZeroShotClassifier.save` wrote, or is such a classifier, in place of labels: its
    mode, templates and calibration hold. Given to `pipeline(...)`, it serves all calls without labels.

    Beyond the stock pipeline, `hypothesis_template` may be a list, averaged as in the paper's section 3.1.4, and
    `tokenizer_kwargs` are honored. Use it with any CLIP of both towers, of this package or of transformers.

    Args:
        **kwargs: Arguments from `transformers.pipeline`: the model, its tokenizer and image processor.

    Raises:
        TypeError: The model scores in another way than CLIP.
        ValueError: There are no images or labels, or a template has no `{}`.
        OtherModelError: The classifier is of another model.
        OSError: An image cannot be read; the error names its place in the list and its file.

    Example:
        >>> classify = pipeline(
        ...     "zero-shot-image-classification", "clip-rn50", pipeline_class=ZeroShotImageClassificationPipeline
        ... )
        >>> classify("photo.jpg", candidate_labels=["a cat", "a dog"])  # [{"score": 0.9, "label": "a cat"}, ...]
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        check_model(self.model)
        self.cache = ClassEmbeddingCache()

    def __call__(
        self,
        image: Any,
        candidate_labels: Iterable[str] | None = None,
        *,
        classifier: Classifier | None = None,
        **kwargs,
    ) -> Any:
        if isinstance(image, list | tuple):
            check_list("images", image)
            image = [Numbered(place, each) for place, each in enumerate(image)]
        head = self._head(candidate_labels, classifier, **kwargs)
        return super().__call__(image, head.labels, head=head, **kwargs)

    def _head(
        self, candidate_labels: Iterable[str] | None, classifier: Classifier | None, **kwargs: Any
    ) -> ClassifierHead:
        """Return a classifier's head, or one of labels that are given in this call."""
        if classifier is None and candidate_labels is None:
            classifier = self._forward_params.get("classifier")
            if classifier is None:
                raise ValueError("candidate_labels is missing: give labels, or classifier, a file that was saved")
        if classifier is None:
            labels = as_labels(candidate_labels or (), "candidate_labels")
            _, forward, _ = self._sanitize_parameters(labels, **kwargs)
            chosen = {**self._forward_params, **forward}
            options = {name: chosen[name] for name in ("templates", "tokenizer_kwargs") if name in chosen}
            return ClassifierHead(labels, [], self._embed_labels(labels, **options))
        given = {"candidate_labels": candidate_labels, **kwargs}
        if both := [name for name in ("candidate_labels", *TEXT_OPTIONS) if given.get(name) is not None]:
            raise ValueError(f"{both[0]} and classifier, which has its own, are both given: leave one out")
        if isinstance(classifier, ZeroShotClassifier):
            if classifier.model is not self.model:
                raise OtherModelError("classifier has another model object: make it with the model of the pipeline")
            head = classifier.head
        else:
            processor = SimpleNamespace(tokenizer=self.tokenizer, image_processor=self.image_processor)
            head = load_head(classifier, self.model, processor)
        if head.exif == "ignore":
            logger.warning_once(
                "the classifier learned from images read with exif ignore, and pipelines turn photos: make it again "
                'with exif="apply" (--exif apply) if photos carry a rotation'
            )
        return head

    def _embed_labels(
        self,
        candidate_labels: list[str],
        templates: Sequence[str] = STOCK_TEMPLATES,
        tokenizer_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        # the tokenizer decides about texts that are too long, as in the stock pipeline
        options = {"truncation": None, **(tokenizer_kwargs or {})}

        def make() -> torch.Tensor:
            warn_of_one_label(candidate_labels)
            embeds = embed_labels(self.model, self.tokenizer, candidate_labels, templates, **options)
            return embeds.to(self.model.device)

        return self.cache.get(cache_key(self.model, self.tokenizer, candidate_labels, templates, options), make)

    def _sanitize_parameters(
        self,
        candidate_labels: list[str] | None = None,
        hypothesis_template: str | list[str] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        classifier: Classifier | None = None,
        head: ClassifierHead | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        preprocess = {name: value for name, value in kwargs.items() if name == "timeout"}
        forward: dict[str, Any] = {}
        if candidate_labels is not None:
            as_labels(candidate_labels, "candidate_labels")
        if hypothesis_template is not None:
            forward["templates"] = as_templates(hypothesis_template)
        if tokenizer_kwargs is not None:
            forward["tokenizer_kwargs"] = tokenizer_kwargs
        if classifier is not None:
            forward["classifier"] = classifier
        given = {} if head is None else {"head": head}
        return preprocess, forward | given, given

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        place, image = image if isinstance(image, Numbered) else (None, image)
        with naming(place, image):
            # transformers opens texts only
            image = load_image(os.fspath(image) if isinstance(image, os.PathLike) else image, timeout=timeout)
        # the images of a batch share the cores in `_forward`, unless the processes of a loader do
        return {"images": image} if get_worker_info() is None else self._pixels(image)

    def _pixels(self, images: Image.Image | list[Image.Image]) -> BatchFeature:
        return self.image_processor(images=images, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: dict[str, Any], head: ClassifierHead, **_: Any) -> dict[str, torch.Tensor]:
        pixels = self._pixels(**model_inputs) if "images" in model_inputs else model_inputs
        return {"logits": head.evidence(self.model, features(self.model, "image", pixels))}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], head: ClassifierHead) -> list[dict]:
        return ranked(head.scores(model_outputs["logits"])[0], head.columns)


__all__ = ["ZeroShotImageClassificationPipeline"]
