"""Converted folders where hf_clip is not installed: `trust_remote_code=True`, in another process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FAMILIES
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, pipeline

import hf_clip
from conversion.convert import Layout, convert

CLIENT = Path(__file__).with_name("remote_code_client.py")
TEXTS = ["a photo of a cat", "“curly” &amp;amp; ﬁne", "two dogs"]
LABELS = ["a cat", "a dog", "“a” bird"]


def expected_outputs(directory: Path, file: Path) -> Path:
    """What the package gives for one image of an odd size and a few texts."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (65, 97, 3), np.uint8))
    model, processor = AutoModel.from_pretrained(directory).eval(), AutoProcessor.from_pretrained(directory)
    inputs = processor(images=image, text=TEXTS, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    answers = pipeline("zero-shot-image-classification", model=str(directory))(image, candidate_labels=LABELS)
    scores = {answer["label"]: answer["score"] for answer in answers}
    tensors = {
        "image": torch.from_numpy(np.array(image)),
        "scores": torch.tensor([scores[label] for label in LABELS]),
        "logits_per_image": logits,
        **inputs,
    }
    save_file(tensors, file, metadata={"texts": "|".join(TEXTS), "labels": "|".join(LABELS)})
    return file


def in_fresh_process(*arguments: Path, cache: Path) -> None:
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # another number can give other bits
    environment = os.environ | threads | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-W", "ignore", str(CLIENT), *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_without_the_package(archives, repositories, tmp_path):
    """Every Auto class and the pipeline, bit for bit, and once more from what was loaded and saved there."""
    arguments = []
    for number, family in enumerate(FAMILIES):
        directory = tmp_path / f"clip_{number}"
        shutil.copytree(repositories[family], directory)
        arguments += [directory, expected_outputs(directory, tmp_path / f"{number}.safetensors")]
    convert(str(archives["tiny ViT"]), tmp_path / "stock", Layout.transformers, report=lambda _: None)
    in_fresh_process(*arguments, tmp_path / "stock", arguments[1], cache=tmp_path)


def test_with_the_package_no_trust_is_asked(repositories, family, tmp_path):
    """And what is saved is whole: it loads without the package."""
    directory = repositories[family]
    loaded = [auto.from_pretrained(directory) for auto in (AutoModel, AutoConfig, AutoProcessor)]
    loaded += [AutoImageProcessor.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)]
    for part in loaded:
        assert type(part) is getattr(hf_clip, type(part).__name__)
    loaded[0].save_pretrained(tmp_path)
    loaded[2].save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in directory.iterdir())
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        saved, converted = (json.loads((folder / name).read_text()) for folder in (tmp_path, directory))
        assert saved["auto_map"] == converted["auto_map"], name


@pytest.mark.parametrize("tower", ["HFCLIPTextModel", "HFCLIPVisionModel", "HFCLIPForImageClassification"])
def test_every_registered_class_takes_its_code_along(repositories, tower, tmp_path):
    getattr(hf_clip, tower).from_pretrained(repositories["tiny ViT"]).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert f"modeling_hf_clip.{tower}" in auto_map.values()
    assert (tmp_path / "modeling_hf_clip.py").is_file()
