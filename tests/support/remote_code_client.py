"""Run by test_remote_code.py: loads folders where hf_clip is not installed, and compares with what the package gave.

Arguments: pairs of a folder and the file of expected outputs; a folder that starts with "stock" needs no trust.
"""

import sys
from pathlib import Path

sys.modules["hf_clip"] = None  # as if it were not installed

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)
from transformers.utils import cached_file


def check(directory: Path, expected: Path, trust: bool) -> None:
    with safe_open(expected, "pt") as file:
        texts, labels = (file.metadata()[key].split("|") for key in ("texts", "labels"))
        wanted = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    loading = {"trust_remote_code": True} if trust else {}
    image = Image.fromarray(wanted["image"].numpy())

    config = AutoConfig.from_pretrained(directory, **loading)
    processor = AutoProcessor.from_pretrained(directory, **loading)
    tokenizer = AutoTokenizer.from_pretrained(directory, **loading)
    image_processor = AutoImageProcessor.from_pretrained(directory, **loading)
    parts = (config, processor, processor.tokenizer, processor.image_processor, tokenizer, image_processor)
    for part in parts:
        assert type(part).__module__.startswith("transformers_modules" if trust else "transformers."), type(part)
    if trust:
        assert torch.equal(image_processor(image, return_tensors="pt")["pixel_values"], wanted["pixel_values"])
        assert torch.equal(tokenizer(texts, return_tensors="pt")["input_ids"], wanted["input_ids"])
        inputs = processor(images=image, text=texts, return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], wanted["pixel_values"])
        assert torch.equal(inputs["input_ids"], wanted["input_ids"])

    for auto in (AutoModel, AutoModelForZeroShotImageClassification):
        model = auto.from_pretrained(directory, **loading).eval()
        with torch.no_grad():
            outputs = model(input_ids=wanted["input_ids"], pixel_values=wanted["pixel_values"])
        compare = torch.equal if trust else torch.allclose
        assert compare(outputs.logits_per_image, wanted["logits_per_image"]), auto
        if trust:
            check_optimized(model, wanted)

    if trust:
        classifier = AutoModelForImageClassification.from_pretrained(directory, num_labels=3, **loading).eval()
        assert type(classifier).__name__ == "HFCLIPForImageClassification"
        assert classifier(wanted["pixel_values"]).logits.shape == (1, 3)
        weights = load_file(cached_file(str(directory), "model.safetensors"))  # of a folder or the Hub
        stored = {name: tensor for name, tensor in weights.items() if "vision" in name}
        loaded = classifier.state_dict()
        tower = [name for name in loaded if name.startswith("vision_model.")]
        assert tower
        assert all(torch.equal(loaded[name], stored[name].to(loaded[name].dtype)) for name in tower)

    classifier = pipeline("zero-shot-image-classification", model=str(directory), **loading)
    answers = classifier(image, candidate_labels=labels)
    scores = {answer["label"]: answer["score"] for answer in answers}
    if trust:  # the stock processor gives other pixels
        assert torch.tensor([scores[label] for label in labels]).equal(wanted["scores"])


def check_optimized(model: torch.nn.Module, wanted: dict[str, torch.Tensor]) -> None:
    assert model.optimize_for_inference() is model
    names = {type(module).__name__ for module in model.modules() if "transformers_modules" in type(module).__module__}
    assert {"HFCLIPFastMLP", "HFCLIPFastTextModel"} <= names
    assert not names & {"HFCLIPMLP", "HFCLIPTextModel", "HFCLIPPatchEmbedding", "HFCLIPResNetBottleneck"}
    with torch.no_grad():
        outputs = model(input_ids=wanted["input_ids"], pixel_values=wanted["pixel_values"])
    assert torch.equal(outputs.logits_per_image, wanted["optimized"])
    assert outputs.text_model_output.last_hidden_state is None


def save_again(directory: Path, copy: Path) -> None:
    AutoModel.from_pretrained(directory, trust_remote_code=True).save_pretrained(copy)
    AutoProcessor.from_pretrained(directory, trust_remote_code=True).save_pretrained(copy)


for directory, expected in zip(map(Path, sys.argv[1::2]), map(Path, sys.argv[2::2]), strict=True):
    trust = not directory.name.startswith("stock")
    check(directory, expected, trust)
    if trust:
        copy = directory.with_name(f"{directory.name}_again")
        save_again(directory, copy)
        directory.rename(directory.with_name(f"{directory.name}_gone"))
        check(copy, expected, trust)
