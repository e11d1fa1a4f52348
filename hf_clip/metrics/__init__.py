"""Metrics of scores and embeddings, and their uncertainty: numbers in, numbers out, no model."""

from .classification import classification_metrics, compute_classification_metrics, mean_average_precision
from .outcomes import Outcomes, bootstrap_difference, paired_difference, proportion_interval
from .retrieval import compute_retrieval_metrics, retrieval_metrics

__all__ = [
    "Outcomes",
    "bootstrap_difference",
    "classification_metrics",
    "compute_classification_metrics",
    "compute_retrieval_metrics",
    "mean_average_precision",
    "paired_difference",
    "proportion_interval",
    "retrieval_metrics",
]
