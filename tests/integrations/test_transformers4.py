"""Our layouts in transformers 4: stock's is read, which Endpoints, infinity and NeMo Curator run; ours says why not."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.browser import pip_packages
from support.plain import load

from hf_clip.model.requirement_hf_clip import LOWEST_TRANSFORMERS

pytestmark = pytest.mark.integration
PACKAGES = ["transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.1"]
PROGRAM = """
import sys
import numpy as np
import torch
import transformers
from transformers import CLIPModel, CLIPProcessor
assert transformers.__version__.startswith("4.57"), transformers.__version__
folder, pixels, out = sys.argv[1:]
model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
ids = processor(text=["a photo of a cat", "two dogs"], padding=True, return_tensors="pt").input_ids
with torch.no_grad():
    image = model.get_image_features(torch.from_numpy(np.load(pixels)))
    text = model.get_text_features(ids)
crop = processor.image_processor.crop_size["height"]
np.savez(out, ids=ids.numpy(), image=image.numpy(), text=text.numpy(), crop=crop)
"""

AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor")
REFUSED = """
import sys
import transformers
for name in sys.argv[2:]:
    try:
        getattr(transformers, name).from_pretrained(sys.argv[1], trust_remote_code=True)
    except ImportError as error:
        print(name, error)
"""


def with_transformers_4(program: str, *arguments: str | os.PathLike) -> str:
    """Run a program in another process, and return its output."""
    here = os.pathsep.join([str(pip_packages("transformers-4", *PACKAGES)), *filter(None, sys.path)])
    command, environment = [sys.executable, "-c", program, *arguments], {**os.environ, "PYTHONPATH": here}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_our_layout_says_what_it_needs(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    lines = with_transformers_4(REFUSED, folders["tiny ViT"], *AUTO_CLASSES).splitlines()
    assert [line.split()[0] for line in lines] == list(AUTO_CLASSES)
    for line in lines:
        assert f"needs transformers {LOWEST_TRANSFORMERS} or later, 4.57.6 is installed: pip install" in line


@torch.no_grad()
def test_features_are_those_of_our_layout(folders, tmp_path):
    ours = load(folders["tiny ViT"])
    size = ours.model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "pixels.npy", pixels.numpy())
    with_transformers_4(PROGRAM, folders["transformers"], tmp_path / "pixels.npy", tmp_path / "out.npz")
    theirs = np.load(tmp_path / "out.npz")
    # the stock tokenizer pads with EOT, ours with 0: no embedding depends on it
    ids = (
        load(folders["transformers"])
        .processor(text=["a photo of a cat", "two dogs"], padding=True, return_tensors="pt")
        .input_ids
    )
    np.testing.assert_array_equal(theirs["ids"], ids.numpy())
    assert theirs["crop"] == size
    np.testing.assert_allclose(theirs["image"], ours.model.encode_image(pixels).numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(theirs["text"], ours.model.encode_text(ids).numpy(), rtol=1e-5, atol=1e-5)
