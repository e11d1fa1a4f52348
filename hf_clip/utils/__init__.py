"""Helpers for files, packages and text that do not depend on CLIP."""
