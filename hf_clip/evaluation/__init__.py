"""Measure models on labeled and captioned images."""

from .metrics import (
    classification_metrics,
    compute_classification_metrics,
    compute_retrieval_metrics,
    mean_average_precision,
    retrieval_metrics,
)
from .outcomes import Outcomes, bootstrap_difference
from .probe import linear_probe
from .prompt_sets import prompts
from .results import Result, ResultsError, comparison, read_result
from .suite import benchmark
from .tasks import retrieval, zero_shot

__all__ = [
    "Outcomes",
    "Result",
    "ResultsError",
    "benchmark",
    "bootstrap_difference",
    "classification_metrics",
    "comparison",
    "compute_classification_metrics",
    "compute_retrieval_metrics",
    "linear_probe",
    "mean_average_precision",
    "prompts",
    "read_result",
    "retrieval",
    "retrieval_metrics",
    "zero_shot",
]
