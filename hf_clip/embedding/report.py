"""Counts of a run's images, and the reasons of skipped ones."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..utils.text import as_line

MOST_NAMED = 10
VARIABLE = re.compile(r"<.*?>|'.*?'|\d+")  # the part of a reason that differs between images


@dataclass
class Report:
    """The outcome of a run, or of a part of it.

    Args:
        embedded: Images with an embedding from this run.
        kept: Images of earlier runs.
        dropped: Rows of images that have changed or are gone.
        errors: Reasons of failures, counted.
        failed: Names of the first images that failed.
        broken: Files of the source that could not be read to their end.
        rotated: Images of this run with an EXIF orientation.
        sixteen_bits: Images of this run with 16 bits a channel.
    """

    embedded: int = 0
    kept: int = 0
    dropped: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    rotated: int = 0
    sixteen_bits: int = 0

    @classmethod
    def of(cls, paths: Iterable[str], errors: Iterable[str | None]) -> "Report":
        """Report one batch by the names of its images and the reasons why they failed, None where they did not."""
        report = cls()
        for path, error in zip(paths, errors, strict=True):
            if error is None:
                report.embedded += 1
            else:
                report.errors[_reason(path, error)] += 1
                report.failed = [*report.failed, as_line(path)][:MOST_NAMED]
        return report

    @property
    def count(self) -> int:
        """The images that are done: embedded, kept, or failed."""
        return self.embedded + self.kept + sum(self.errors.values())

    def add(self, other: "Report") -> None:
        """Add the report of a part."""
        self.embedded += other.embedded
        self.errors.update(other.errors)
        self.rotated += other.rotated
        self.sixteen_bits += other.sixteen_bits
        self.failed = [*self.failed, *other.failed][:MOST_NAMED]

    def as_json(self) -> str:
        """Write the report as text, to send it to another process."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Rebuild a report from its `as_json`."""
        values = json.loads(text)
        return cls(**{**values, "errors": Counter(values["errors"])})

    def skipped(self) -> str:
        """Describe in one line which images were skipped and why; empty if none was."""
        if not self.errors:
            return "; ".join(self.broken)
        total = sum(self.errors.values())
        reasons = [f"{count:,} for: {reason}" for reason, count in self.errors.most_common(3)]
        more = f" and {total - len(self.failed):,} more" if total > len(self.failed) else ""
        names = f"{', '.join(self.failed)}{more}"
        return "; ".join([f"{total:,} of {self.count:,} images could not be read ({names})", *reasons, *self.broken])


def _reason(path: str, error: str) -> str:
    """Leave names and numbers out of an error, so that like ones are counted together."""
    return VARIABLE.sub("...", error.replace(path, "...").rsplit(": ", 1)[-1])[:80].strip()


__all__ = ["MOST_NAMED", "Report"]
