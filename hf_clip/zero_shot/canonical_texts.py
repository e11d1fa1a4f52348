"""Texts that fit anywhere. This module imports no torch, for searches that need none."""

# "canonical phrases" that a text has to fit better than (LERF, Kerr et al., 2023)
CANONICAL_TEXTS = ("object", "things", "stuff", "texture")

__all__ = ["CANONICAL_TEXTS"]
