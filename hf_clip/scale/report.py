"""Counts of what a run did, and reasons of what it skipped."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..utils.text import listing

MAX_NAMED = 10
NAMES = re.compile(r"<.*?>|'.*?'|\d+")


@dataclass
class Report:
    """What a run did.

    Args:
        embedded: Images with an embedding from this run.
        kept: Images of earlier runs.
        dropped: Rows of images that have changed or are gone.
        errors: Reasons of failures, counted, with one example of each.
        broken: Files of the source that could not be read to their end.
    """

    embedded: int = 0
    kept: int = 0
    dropped: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def count(self, table: Any) -> None:
        """Count the rows of a part."""
        errors = [(path, error) for path, error in zip(*_columns(table), strict=True) if error is not None]
        self.embedded += len(table) - len(errors)
        self.failed += [path for path, _ in errors][: MAX_NAMED - len(self.failed)]
        self.errors.update(_reason(path, error) for path, error in errors)

    def skipped(self) -> str:
        """Describe in one line what was skipped and why; empty if nothing was."""
        reasons = [f"{count:,} for: {reason}" for reason, count in self.errors.most_common(3)]
        if self.errors:
            text = f"{sum(self.errors.values()):,} images could not be read ({listing(self.failed, MAX_NAMED)}); "
            return text + "; ".join([*reasons, *self.broken])
        return "; ".join(self.broken)


def _columns(table: Any) -> tuple[list[str], list[str | None]]:
    return table["path"].to_pylist(), table["error"].to_pylist()


def _reason(path: str, error: str) -> str:
    """Leave names and numbers out of an error, so that like ones are counted together."""
    return NAMES.sub("...", error.replace(path, "...").rsplit(": ", 1)[-1])[:80].strip()


__all__ = ["MAX_NAMED", "Report"]
