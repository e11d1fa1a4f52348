"""Any CLIP with its processor, and what it computes when each text and image is embedded by itself."""

import functools
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModel, AutoProcessor

LABELS = ["cat", "dog", "bird", "horse"]
LONG_LABELS = ["a very large and rather old lighthouse by the sea", "cat", "sailing boat", "Zugspitzbahn", "dog"]


@functools.cache
def load(folder: Path, **options) -> SimpleNamespace:
    """Model and processor, for tests that leave them as they are."""
    model = AutoModel.from_pretrained(folder, **options).eval()
    return SimpleNamespace(folder=folder, model=model, processor=AutoProcessor.from_pretrained(folder))


@torch.no_grad()
def plain_logits(clip, images, labels, template: str) -> torch.Tensor:
    texts = [template.format(label) for label in labels]
    inputs = clip.processor(text=texts, images=images, padding=True, return_tensors="pt")
    return clip.model(**inputs).logits_per_image


@torch.no_grad()
def plain_image_embeds(clip, images) -> torch.Tensor:
    inputs = clip.processor(images=images, return_tensors="pt")
    embeds = clip.model.get_image_features(**inputs).pooler_output
    return embeds / embeds.norm(dim=-1, keepdim=True)


@torch.no_grad()
def plain_text_embeds(clip, texts) -> torch.Tensor:
    embeds = [
        clip.model.get_text_features(**clip.processor.tokenizer([text], return_tensors="pt")).pooler_output
        for text in texts
    ]
    return torch.cat([row / row.norm(dim=-1, keepdim=True) for row in embeds])


def spy(monkeypatch, model, name: str) -> list[torch.Size]:
    """The shapes of the first input of every call of a model's method."""
    shapes, method = [], getattr(model, name)

    def spied(**inputs):
        shapes.append(next(iter(inputs.values())).shape)
        return method(**inputs)

    monkeypatch.setattr(model, name, spied)
    return shapes
