"""Figures and contact sheets: scores, maps, training curves, evaluations, search results."""
