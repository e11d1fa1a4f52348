"""Figures: scores, maps, curves, evaluations."""
