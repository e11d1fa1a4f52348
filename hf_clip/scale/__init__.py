"""Embed any number of images: callables for any engine, runs in parts, and an engine for clusters."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callables import ImageEmbedder, ImagePreprocessor, TextEmbedder

__all__ = ["ImageEmbedder", "ImagePreprocessor", "TextEmbedder"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import callables

    return getattr(callables, name)
