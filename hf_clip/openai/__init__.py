"""The original's API: `import hf_clip.openai as clip` in place of `import clip`."""

from .api import LoadError, TooLongError, available_models, load, tokenize
from .model import CLIP, build_model, convert_weights

__all__ = [
    "CLIP",
    "LoadError",
    "TooLongError",
    "available_models",
    "build_model",
    "convert_weights",
    "load",
    "tokenize",
]
