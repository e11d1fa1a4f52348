"""Zero-shot classification with any CLIP, ours or transformers' own; labels are encoded once (paper section 3.1)."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ..embedding.features import collect
from ..embedding.identity import OtherModelError, name_of, same_model, text_probe
from ..embedding.images import OnError, count_images, image_features
from ..loading import load_clip
from ..utils.files import replacing
from .prompts import TEMPLATE, as_labels, as_templates, embed_labels, warn_of_one_label
from .scoring import check_model, ranked, zero_shot_logits

CLASSES_FORMAT = "hf_clip class embeddings 1"


class ZeroShotClassifier:
    """Score images against labels that are embedded once, when the classifier is made.

    Embeddings and logits are float32 whatever the model computes in. A repeated label gets a score at each of its
    places, as in the stock pipeline. With one label alone every score is 1, and a warning says so.

    Args:
        model: A CLIP of both towers, of this package or transformers' own, in evaluation mode.
        processor: Its processor.
        labels: The classes, in any iterable.
        templates: One or several texts with `{}` for the label; several are averaged as in the paper's section 3.1.4.
        class_embeds: Known embeddings of the labels, (labels, projection_dim), of length 1.

    Raises:
        TypeError: The model scores in another way than CLIP.
        ValueError: There are no labels, or a template has no `{}`.

    Example:
        >>> classifier = ZeroShotClassifier(model, processor, ["cat", "dog"])
        >>> [[best, second]] = classifier("photo.jpg")  # {"label": "cat", "score": 0.9}, ...
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        labels: Iterable[str],
        templates: str | Iterable[str] = TEMPLATE,
        *,
        class_embeds: torch.Tensor | None = None,
    ):
        check_model(model)
        self.model, self.processor = model, processor
        self.labels, self.templates = as_labels(labels), as_templates(templates)
        warn_of_one_label(self.labels)
        if class_embeds is None:
            class_embeds = embed_labels(model, processor, self.labels, self.templates)
        self.class_embeds = class_embeds.to(model.device)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        labels: Iterable[str],
        templates: str | Iterable[str] = TEMPLATE,
        **loading: Any,
    ) -> "ZeroShotClassifier":
        """Load the model and its processor by `load_clip`, and make the classifier.

        Args:
            source: One of the nine names, a checkpoint file, a folder, or a Hub id.
            labels: The classes.
            templates: One or several texts with `{}` for the label.
            **loading: Other options of `load_clip`: `device`, `dtype`, `optimize`, `revision` and so on.
        """
        model, processor = load_clip(source, **loading)
        return cls(model, processor, labels, templates)

    @classmethod
    def load(cls, path: str | os.PathLike, model: PreTrainedModel, processor: Any) -> "ZeroShotClassifier":
        """Read class embeddings that `save` wrote.

        Raises:
            OtherModelError: Another model made the embeddings.
            ValueError: The file holds no class embeddings.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != CLASSES_FORMAT:
                    raise ValueError(f"{path} holds no class embeddings: write it with ZeroShotClassifier.save")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
        same_precision = metadata["dtype"] == str(model.dtype)
        if not same_model(text_probe(model, processor), tensors["probe"], same_precision):
            raise OtherModelError(
                f"the class embeddings in {path} were made by another model, {metadata['model']!r}, than "
                f"{name_of(model)!r}: make them again"
            )
        labels, templates = json.loads(metadata["labels"]), json.loads(metadata["templates"])
        return cls(model, processor, labels, templates, class_embeds=tensors["class_embeds"])

    def save(self, path: str | os.PathLike) -> None:
        """Write class embeddings, labels and templates as safetensors.

        The embedding of a fixed text goes with them: `load` tells by it whether the model is the same.
        """
        path = Path(path)
        tensors = {
            "class_embeds": self.class_embeds.cpu().contiguous(),
            "probe": text_probe(self.model, self.processor),
        }
        metadata = {
            "format": CLASSES_FORMAT,
            "labels": json.dumps(self.labels),
            "templates": json.dumps(self.templates),
            "model": name_of(self.model),
            "dtype": str(self.model.dtype),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as work:
            save_file(tensors, work, metadata)

    def __call__(
        self, images: Any, top_k: int | None = 5, *, batch_size: int = 16, workers: int | None = None
    ) -> list[list[dict[str, Any]]]:
        """Rank the labels of each image, the best `top_k` or all, as `{"label", "score"}` with probabilities."""
        return [
            ranked(logits, self.labels, top_k) for logits in self.logits(images, batch_size=batch_size, workers=workers)
        ]

    def logits(self, images: Any, *, batch_size: int = 16, workers: int | None = None) -> torch.Tensor:
        """Compute scores (images, labels), float32 on the CPU; their softmax over the labels are probabilities."""
        batches = self._logits(images, batch_size, workers)
        return collect((logits for _, logits in batches), "image", count_images(images))

    def stream(
        self,
        images: Any,
        top_k: int | None = 5,
        *,
        batch_size: int = 16,
        workers: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        """Yield each image as it was passed, and its ranked labels, in order, as images arrive.

        `iter_image_embeds` describes `images` and `on_error`.
        """
        for items, logits in self._logits(images, batch_size, workers, on_error):
            for item, row in zip(items, logits, strict=True):
                yield item, ranked(row, self.labels, top_k)

    def _logits(self, images: Any, batch_size: int, workers: int | None, on_error: OnError | None = None) -> Iterator:
        batches = image_features(self.model, self.processor, images, batch_size, workers, on_error=on_error)
        for items, embeds in batches:
            yield items, zero_shot_logits(self.model, embeds, self.class_embeds).cpu()


__all__ = ["ZeroShotClassifier"]
