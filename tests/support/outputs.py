"""What the package gives for fixed inputs, for processes that load the same folder in another way."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, pipeline

import hf_clip  # noqa: F401 (registers the classes)

TEXTS = ["a photo of a cat", "“curly” &amp;amp; ﬁne", "two dogs"]
LABELS = ["a cat", "a dog", "“a” bird"]


def expected_outputs(directory: Path, file: Path) -> Path:
    """Save what the package gives for one image of an odd size and a few texts."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (65, 97, 3), np.uint8))
    model, processor = AutoModel.from_pretrained(directory).eval(), AutoProcessor.from_pretrained(directory)
    inputs = processor(images=image, text=TEXTS, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
        optimized = model.optimize_for_inference()(**inputs).logits_per_image
    answers = pipeline("zero-shot-image-classification", model=str(directory))(image, candidate_labels=LABELS)
    scores = {answer["label"]: answer["score"] for answer in answers}
    tensors = {
        "image": torch.from_numpy(np.array(image)),
        "scores": torch.tensor([scores[label] for label in LABELS]),
        "logits_per_image": logits,
        "optimized": optimized,
        **inputs,
    }
    save_file(tensors, file, metadata={"texts": "|".join(TEXTS), "labels": "|".join(LABELS)})
    return file
