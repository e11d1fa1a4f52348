"""Decisions by rows of scores, each with its margin and reason."""

from dataclasses import dataclass
from typing import Any

from ..embedding.features import Array
from .head import ClassifierHead
from .numerics import descending
from .scoring import ranked


@dataclass(frozen=True)
class Decision:
    """A decision about one image.

    Args:
        labels: The labels that are taken: at most one in the modes "one" and "any", any number in "each".
        scores: The best labels as `{"label", "score"}`, best first; in the mode "any" with "none of these".
        margin: By how much scores would have to change for another decision, at least 0.
        reason: One sentence.
        prediction_set: The labels that cannot be excluded, best first, where these were asked for.
    """

    labels: list[Any]
    scores: list[dict[str, Any]]
    margin: float
    reason: str
    prediction_set: list[Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object of `hf-clip classify --json` and of the server: the scores are its `labels`."""
        found = {} if self.prediction_set is None else {"set": self.prediction_set}
        return {
            "labels": self.scores, "decision": self.labels, "margin": self.margin, "reason": self.reason, **found,
        }  # fmt: skip


def decide(head: ClassifierHead, scores: Array, least: Array, top_k: int | None = 5) -> Decision:
    """Decide by one image's `scores` (columns,), with the least score of each label (labels,)."""
    rows = ranked(scores, head.columns, top_k)
    if head.mode == "each":
        return _decide_each(head, scores, least, rows)
    order = descending(scores)
    best, second = order[0], (order[1] if len(order) > 1 else None)
    name, score = head.columns[best], scores[best].item()
    lead = score if second is None else score - scores[second].item()
    leads = f"{name!r} leads" + ("" if second is None else f" {head.columns[second]!r} by {lead:.2f}")
    if best == len(head.labels):
        return Decision([], rows, lead, leads)
    above = score - least[best].item()
    if above < 0:
        return Decision([], rows, -above, f"{name!r} is best with {score:.2f}, its threshold is {least[best]:.2f}")
    return Decision([name], rows, min(lead, above) if least[best] > 0 else lead, leads)


def _decide_each(head: ClassifierHead, scores: Array, least: Array, rows: list[dict[str, Any]]) -> Decision:
    above = (scores - least).tolist()
    taken = [place for place, distance in enumerate(above) if distance >= 0]
    nearest = min(range(len(above)), key=lambda place: abs(above[place]))
    side = "above" if above[nearest] >= 0 else "below"
    reason = (
        f"{len(taken)} of {len(above)} labels reach their thresholds, the nearest is {head.labels[nearest]!r}, "
        f"{abs(above[nearest]):.2f} {side}"
    )
    return Decision([head.labels[place] for place in taken], rows, abs(above[nearest]), reason)


__all__ = ["Decision", "decide"]
