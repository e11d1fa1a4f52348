"""The original's API: `import hf_clip.openai as clip` in place of `import clip`. Its names load when first used.

Its modules have the original's names too: `from hf_clip.openai import clip, model, simple_tokenizer`.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "clip": ["LoadError", "TooLongError", "available_models", "load", "tokenize"],
    "model": ["CLIP", "build_model", "convert_weights"],
}
_SUBMODULES = ["clip", "model", "simple_tokenizer"]
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
