"""Sentences about many things."""

from collections.abc import Sequence


def listing(names: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    """Join `names`, the first `most` of them and the number of the others."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{separator.join(names[:most])}{rest}"


__all__ = ["listing"]
