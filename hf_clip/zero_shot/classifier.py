"""Zero-shot classification (paper section 3.1) that encodes each label once.

Models and processors are those of this package or transformers' own CLIP.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ..embedding.features import check_list, collect
from ..embedding.identity import OtherModelError, name_of, same_model, text_probe
from ..embedding.images import OnError, count_images, image_features
from ..loading import load_clip
from ..utils.files import replacing
from .prompts import TEMPLATE, as_templates, embed_labels
from .scoring import check_model, ranked, zero_shot_logits

FORMAT = "hf_clip class embeddings 1"


class ZeroShotClassifier:
    """Score images against labels whose embeddings are made once.

    Embeddings and logits are float32 whatever the model computes in. A label may come twice, as in the stock pipeline;
    each place gets its own score.

    Args:
        model: A CLIP of both towers, of this package or transformers' own, in evaluation mode.
        processor: Its processor.
        labels: The classes.
        templates: One or several texts with `{}` for the label; several are averaged as in the paper's section 3.1.4.
        class_embeds: (labels, projection_dim), where they are known already.

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
        labels: Sequence[str],
        templates: str | Sequence[str] = TEMPLATE,
        *,
        class_embeds: torch.Tensor | None = None,
    ):
        check_model(model)
        check_list("labels", labels)
        self.model, self.processor = model, processor
        self.labels, self.templates = list(labels), as_templates(templates)
        if class_embeds is None:
            class_embeds = embed_labels(model, processor, self.labels, self.templates)
        self.class_embeds = class_embeds.to(model.device)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | os.PathLike,
        labels: Sequence[str],
        templates: str | Sequence[str] = TEMPLATE,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        optimize: bool = False,
        trust_remote_code: bool = False,
    ) -> "ZeroShotClassifier":
        """Load the model from a folder or a Hub id as `load_clip` does, and make the classifier."""
        model, processor = load_clip(
            model_id, device=device, dtype=dtype, optimize=optimize, trust_remote_code=trust_remote_code
        )
        return cls(model, processor, labels, templates)

    @classmethod
    def load(cls, path: str | os.PathLike, model: PreTrainedModel, processor: Any) -> "ZeroShotClassifier":
        """Read what `save` wrote.

        Raises:
            OtherModelError: Another model made the embeddings.
            ValueError: The file holds no class embeddings.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
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

        The embedding of a fixed text goes with them, by which `load` knows the model.
        """
        path = Path(path)
        tensors = {
            "class_embeds": self.class_embeds.cpu().contiguous(),
            "probe": text_probe(self.model, self.processor),
        }
        metadata = {
            "format": FORMAT,
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
        """Give each image, as it was given, and its labels, in order, as `images` arrive; see `iter_image_embeds`."""
        for items, logits in self._logits(images, batch_size, workers, on_error):
            for item, row in zip(items, logits, strict=True):
                yield item, ranked(row, self.labels, top_k)

    def _logits(self, images: Any, batch_size: int, workers: int | None, on_error: OnError | None = None) -> Iterator:
        batches = image_features(self.model, self.processor, images, batch_size, workers, on_error=on_error)
        for items, embeds in batches:
            yield items, zero_shot_logits(self.model, embeds, self.class_embeds).cpu()


__all__ = ["ZeroShotClassifier"]
