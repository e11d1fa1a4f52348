"""The original's API: `import hf_clip.openai as clip` in place of `import clip`. Its names load when first used.

Its modules have the original's names too: `from hf_clip.openai import clip, model, simple_tokenizer`. After
`install()`, `import clip` gives all of them, in every module of the process.
"""

import sys
from importlib import import_module
from typing import Any

_MODULES = {
    "clip": ["LoadError", "TooLongError", "available_models", "load", "tokenize"],
    "model": ["CLIP", "build_model", "convert_weights", "from_hf_model", "to_hf_model"],
    "optimized": ["OptimizedCLIP"],
}
_SUBMODULES = ["clip", "model", "simple_tokenizer"]
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*sorted(_MODULE_OF), "install"]


def install() -> None:
    """Make `import clip`, and `clip.clip`, `clip.model` and `clip.simple_tokenizer`, give this package.

    This holds for every module of the process that imports them afterwards, and for pickles of the original's models.
    A second call changes nothing. Processes that are spawned need a call of their own.

    Raises:
        ImportError: Another `clip` was imported before.

    Example:
        >>> import hf_clip.openai
        >>> hf_clip.openai.install()
        >>> from clip.model import VisionTransformer  # hf_clip's
    """
    present = sys.modules.get("clip")
    if present is not None and present is not sys.modules[__name__]:
        path = getattr(present, "__file__", None)
        raise ImportError(f"another clip was imported before, from {path}: call install() ahead of that import")
    parts = {f"clip.{name}": import_module(f".{name}", __name__) for name in _SUBMODULES}
    sys.modules.update(parts, clip=sys.modules[__name__])


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
