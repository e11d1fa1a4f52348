"""Evaluators: functions that measure a model on labeled or captioned images."""

from .probe import linear_probe
from .prompt_sets import prompts
from .results import Result, ResultsError, comparison, read_result
from .suite import benchmark
from .tasks import ZeroShotSet, retrieval, zero_shot

__all__ = [
    "Result",
    "ResultsError",
    "ZeroShotSet",
    "benchmark",
    "comparison",
    "linear_probe",
    "prompts",
    "read_result",
    "retrieval",
    "zero_shot",
]
