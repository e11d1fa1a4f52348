"""Helpers that know nothing of CLIP."""
