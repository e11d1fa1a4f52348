"""`import clip` in a process of its own, without the original."""

import subprocess
import sys
from pathlib import Path

import clip
import pytest
import torch
from support.originals import FAMILIES, inputs, original_model
from support.threads import as_many_threads

import hf_clip.openai

ROOT = Path(__file__).parents[2]


def run(code: str, *args: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code, *args]
    return subprocess.run(command, check=True, cwd=ROOT, env=as_many_threads(), capture_output=True, text=True).stdout


def test_every_import_is_ours(archives, tmp_path):
    """Whole names, submodules, star, by string, and in modules that are imported later."""
    (tmp_path / "program.py").write_text(
        "import clip.model as m\nfrom clip.simple_tokenizer import SimpleTokenizer as _Tokenizer\n"
        "from clip.clip import _transform, _tokenizer, _download, _MODELS, BICUBIC, build_model\n"
        "from clip.clip import _convert_image_to_rgb\n"
    )
    out = run(
        """
import importlib, sys
import hf_clip.openai
hf_clip.openai.install()
hf_clip.openai.install()
import clip
from clip import clip as inner, load, tokenize, available_models
from clip import *
import clip.clip
from clip.model import CLIP, VisionTransformer, ModifiedResNet, AttentionPool2d, Bottleneck, Transformer
from clip.model import ResidualAttentionBlock, LayerNorm, QuickGELU, convert_weights, build_model
sys.path.insert(0, sys.argv[1])
import program
assert clip is hf_clip.openai and inner is clip.clip is importlib.import_module("clip.clip")
assert program.m is clip.model and program.build_model is build_model
assert importlib.util.find_spec("clip").name == "hf_clip.openai"
model, _ = clip.load(sys.argv[2], "cpu")
assert type(model) is CLIP and model.__class__.__module__ == "hf_clip.openai.model"
print(all("site-packages/clip/" not in (getattr(m, "__file__", None) or "") for m in list(sys.modules.values())))
""",
        str(tmp_path),
        str(archives["tiny ViT"]),
    )
    assert out == "True\n"


def test_pickles_of_the_original_s_models(tmp_path):
    for family in FAMILIES:
        model = original_model(family)
        images, texts = inputs(model)
        torch.save(model, tmp_path / f"{family}.pt")
        torch.save((images, texts, *model(images, texts)), tmp_path / f"{family} expected.pt")
    out = run(
        """
import sys, torch, hf_clip.openai
hf_clip.openai.install()
for name in sys.argv[1:]:
    model = torch.load(f"{name}.pt", weights_only=False)
    images, texts, *expected = torch.load(f"{name} expected.pt")
    print(type(model).__module__, all(map(torch.equal, model(images, texts), expected)))
""",
        *(str(tmp_path / family) for family in FAMILIES),
    )
    assert out == "hf_clip.openai.model True\n" * len(FAMILIES)


def test_another_clip_is_not_replaced():
    assert sys.modules["clip"] is clip
    with pytest.raises(ImportError, match=r"another clip was imported before, from .*clip.__init__\.py: call install"):
        hf_clip.openai.install()
    assert sys.modules["clip"] is clip
