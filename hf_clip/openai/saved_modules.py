"""Whole models that were pickled with `torch.save(model)`, read as state dicts: their classes are never imported."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# the original's classes, this package's, PyTorch's own layers, and what wraps them in training
_CLASSES = re.compile(
    r"(clip\.model|hf_clip\.openai\.model|torch\.nn\.modules\.\w+|torch\.nn\.parallel\.\w+)\.[A-Z]\w*"
)

_WHOLE = {"clip.model.CLIP", "hf_clip.openai.model.CLIP"}


class SavedModule:
    """Inert stand-in for a module of any class: the attributes that were pickled, and no code."""

    def __setstate__(self, attributes: dict) -> None:
        self.attributes = attributes

    def contents(self) -> dict:
        """Return the parameters, persistent buffers and parts, which are SavedModules, by name."""
        own = vars(self).get("attributes", {})
        tensors = {**own.get("_buffers", {}), **own.get("_parameters", {})}
        transient = own.get("_non_persistent_buffers_set", ())
        return {name: value for name, value in tensors.items() if name not in transient} | own.get("_modules", {})


@contextmanager
def reading_saved_modules(path: Path) -> Iterator[None]:
    """Make `torch.load(path, weights_only=True)` return a SavedModule for each module of a CLIP in the file."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    known = [name for name in names if _CLASSES.fullmatch(name)] if _WHOLE.intersection(names) else []
    with torch.serialization.safe_globals([(SavedModule, name) for name in known]):
        yield


__all__ = ["SavedModule", "reading_saved_modules"]
