"""Metrics of scores and embeddings, and their uncertainty: numbers in, numbers out, no model."""

from .calibration import expected_calibration_error, reliability
from .classification import classification_metrics, compute_classification_metrics, mean_average_precision
from .conformal import conformal_quantile
from .outcomes import Outcomes, bootstrap_difference, paired_difference, proportion_interval
from .retrieval import compute_retrieval_metrics, retrieval_metrics
from .thresholds import Threshold, threshold_for_precision, threshold_for_recall

__all__ = [
    "Outcomes",
    "Threshold",
    "bootstrap_difference",
    "classification_metrics",
    "compute_classification_metrics",
    "compute_retrieval_metrics",
    "conformal_quantile",
    "expected_calibration_error",
    "mean_average_precision",
    "paired_difference",
    "proportion_interval",
    "reliability",
    "retrieval_metrics",
    "threshold_for_precision",
    "threshold_for_recall",
]
