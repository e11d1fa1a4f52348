"""transformers' zero-shot image classification pipeline; labels are encoded once, not once per image."""

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import get_worker_info
from transformers import BatchFeature
from transformers import ZeroShotImageClassificationPipeline as StockPipeline
from transformers.image_utils import load_image

from ..embedding.features import check_list, features
from ..model.image_processing_hf_clip import naming
from .cache import ClassEmbeddingCache, cache_key
from .prompts import as_labels, as_templates, embed_labels, warn_of_one_label
from .scoring import check_model, ranked, zero_shot_logits

STOCK_TEMPLATES = ("This is a photo of {}.",)


class Numbered(NamedTuple):
    """An image with its place in a list, which errors name."""

    place: int
    image: Any


class ZeroShotImageClassificationPipeline(StockPipeline):
    """Classify images as the stock pipeline does, and keep the embeddings of labels from call to call.

    Each call checks once whether the tokenizer or a weight of the model has changed since the last call, and if so
    encodes its labels again; only weights written through `.data` go unnoticed, and `cache.clear()` forgets all labels.
    Threads may share a pipeline. Scores equal the stock pipeline's within 1e-5 in float32.

    Beyond the stock pipeline, `hypothesis_template` may be a list, averaged as in the paper's section 3.1.4, and
    `tokenizer_kwargs` are honored. Use it with any CLIP of both towers, of this package or of transformers.

    Args:
        **kwargs: Arguments from `transformers.pipeline`: the model, its tokenizer and image processor.

    Raises:
        TypeError: The model scores in another way than CLIP.
        ValueError: There are no images or labels, or a template has no `{}`.
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

    def __call__(self, image: Any, candidate_labels: Iterable[str], **kwargs) -> Any:
        candidate_labels = as_labels(candidate_labels, "candidate_labels")
        if isinstance(image, list | tuple):
            check_list("images", image)
            image = [Numbered(place, each) for place, each in enumerate(image)]
        _, forward, _ = self._sanitize_parameters(candidate_labels, **kwargs)
        class_embeds = self._embed_labels(**{**self._forward_params, **forward})
        return super().__call__(image, candidate_labels, class_embeds=class_embeds, **kwargs)

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
        class_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        preprocess = {name: value for name, value in kwargs.items() if name == "timeout"}
        forward: dict[str, Any] = {}
        postprocess: dict[str, Any] = {}
        if candidate_labels is not None:
            labels = as_labels(candidate_labels, "candidate_labels")
            forward["candidate_labels"] = postprocess["candidate_labels"] = labels
        if hypothesis_template is not None:
            forward["templates"] = as_templates(hypothesis_template)
        if tokenizer_kwargs is not None:
            forward["tokenizer_kwargs"] = tokenizer_kwargs
        if class_embeds is not None:
            forward["class_embeds"] = class_embeds
        return preprocess, forward, postprocess

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        place, image = image if isinstance(image, Numbered) else (None, image)
        with naming(place, image):
            # transformers opens texts only
            image = load_image(os.fspath(image) if isinstance(image, os.PathLike) else image, timeout=timeout)
        # the images of a batch share the cores in `_forward`, unless the processes of a loader do
        return {"images": image} if get_worker_info() is None else self._pixels(image)

    def _pixels(self, images: Image.Image | list[Image.Image]) -> BatchFeature:
        return self.image_processor(images=images, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: dict[str, Any], class_embeds: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        pixels = self._pixels(**model_inputs) if "images" in model_inputs else model_inputs
        image_embeds = features(self.model, "image", pixels)
        return {"logits": zero_shot_logits(self.model, image_embeds, class_embeds)}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], candidate_labels: list[str]) -> list[dict]:
        return ranked(model_outputs["logits"][0], candidate_labels)


__all__ = ["ZeroShotImageClassificationPipeline"]
