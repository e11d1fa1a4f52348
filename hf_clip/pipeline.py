"""transformers' zero-shot image classification pipeline, with labels that are encoded once and not once per image."""

from typing import Any

import torch
from PIL import Image
from torch.utils.data import get_worker_info
from transformers import BatchFeature
from transformers import ZeroShotImageClassificationPipeline as StockPipeline
from transformers.image_utils import load_image

from .zero_shot import as_templates, check_list, check_model, embed_labels, features, similarities


class ZeroShotImageClassificationPipeline(StockPipeline):
    """The stock pipeline, inputs and outputs alike, that keeps the embeddings of its labels from call to call.

    They are made again when the labels, the template, the tokenizer or its options, or the model's weights change; only
    weights written through `.data` go unnoticed. Scores equal the stock pipeline's within 1e-5 in float32.

    Beyond the stock pipeline, `hypothesis_template` may be a list, averaged as in the paper's section 3.1.4, and
    `tokenizer_kwargs` are honoured. Use it with any CLIP of both towers, of this package or of transformers:

        pipeline("zero-shot-image-classification", model, pipeline_class=ZeroShotImageClassificationPipeline)

    Raises TypeError for a model that scores in another way, ValueError for no images, no labels, and a template without
    `{}`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        check_model(self.model)
        self._key, self._class_embeds = None, None

    def __call__(self, image: Any, candidate_labels: list[str], **kwargs) -> Any:
        if isinstance(image, list | tuple):
            check_list("images", image)
        return super().__call__(image, candidate_labels, **kwargs)

    def _sanitize_parameters(
        self,
        candidate_labels: list[str] | None = None,
        hypothesis_template: str | list[str] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        preprocess = {name: value for name, value in kwargs.items() if name == "timeout"}
        forward, postprocess = {}, {}
        if candidate_labels is not None:
            check_list("candidate_labels", candidate_labels)
            forward["candidate_labels"] = postprocess["candidate_labels"] = list(candidate_labels)
        if hypothesis_template is not None:
            forward["templates"] = as_templates(hypothesis_template)
        if tokenizer_kwargs is not None:
            forward["tokenizer_kwargs"] = tokenizer_kwargs
        return preprocess, forward, postprocess

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        image = load_image(image, timeout=timeout)
        # the images of a batch share the cores in `_forward`, unless the processes of a loader do
        return {"images": image} if get_worker_info() is None else self._pixels(image)

    def _pixels(self, images: Image.Image | list[Image.Image]) -> BatchFeature:
        return self.image_processor(images=images, return_tensors="pt").to(self.dtype)

    def _forward(
        self,
        model_inputs: dict[str, Any],
        candidate_labels: list[str],
        templates: list[str] | tuple[str] = ("This is a photo of {}.",),
        tokenizer_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, torch.Tensor]:
        # what is too long is the tokenizer's affair here, as in the stock pipeline
        tokenizer_kwargs = {"truncation": None, **(tokenizer_kwargs or {})}
        key = (
            # as a text, which nobody can change between calls
            repr((candidate_labels, list(templates), tokenizer_kwargs)),
            self.tokenizer,
            *_state(self.model),
        )
        if key != self._key:
            self._class_embeds = embed_labels(
                self.model, self.tokenizer, candidate_labels, templates, **tokenizer_kwargs
            ).to(self.model.device)
            self._key = key
        pixels = self._pixels(**model_inputs) if "images" in model_inputs else model_inputs
        image_embeds = features(self.model, "image", pixels)
        return {"logits": similarities(self.model, image_embeds, self._class_embeds)}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], candidate_labels: list[str]) -> list[dict]:
        return super().postprocess({**model_outputs, "candidate_labels": candidate_labels})


def _state(model: torch.nn.Module) -> list[Any]:
    """Changes when a weight of `model` is replaced, moved, cast or written to."""
    return [model] + [
        (weight.data_ptr(), weight.dtype, weight.device, 0 if weight.is_inference() else weight._version)
        for weight in (*model.parameters(), *model.buffers())
    ]


__all__ = ["ZeroShotImageClassificationPipeline"]
