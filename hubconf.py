"""`torch.hub.load(repository, "ViT_B_32", device="cpu")` gives what `load` gives; `"tokenize"` gives the function."""

import re
from functools import partial

from hf_clip.openai import available_models as _available_models
from hf_clip.openai import load as _load
from hf_clip.openai import tokenize as _tokenize

dependencies = ["torch", "torchvision", "transformers", "safetensors", "ftfy", "regex", "filelock"]


def tokenize():
    """The function from texts to token ids."""
    return _tokenize


globals().update({re.sub(r"\W", "_", name): partial(_load, name) for name in _available_models()})
