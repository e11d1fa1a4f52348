"""Converted folders where hf_clip is not installed: `trust_remote_code=True`, in another process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.originals import FAMILIES
from support.outputs import expected_outputs
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

import hf_clip
from hf_clip.openai.convert import SENTENCE_TRANSFORMERS, Layout, convert

CLIENT = Path(__file__).with_name("support") / "remote_code_client.py"


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
    saved, converted = ({file.name for file in folder.iterdir()} for folder in (tmp_path, directory))
    assert saved | SENTENCE_TRANSFORMERS.keys() == converted
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        saved, converted = (json.loads((folder / name).read_text()) for folder in (tmp_path, directory))
        assert saved["auto_map"] == converted["auto_map"], name


@pytest.mark.parametrize("tower", ["HFCLIPTextModel", "HFCLIPVisionModel", "HFCLIPForImageClassification"])
def test_every_registered_class_takes_its_code_along(repositories, tower, tmp_path):
    getattr(hf_clip, tower).from_pretrained(repositories["tiny ViT"]).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert f"modeling_hf_clip.{tower}" in auto_map.values()
    assert (tmp_path / "modeling_hf_clip.py").is_file()
