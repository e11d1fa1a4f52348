"""Text from files and users, made safe to print."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

# C0 and C1 controls, line separators, bidirectional overrides, lone surrogates, the invisible tag characters
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)


def printable(text: object) -> str:
    r"""Return `text` as one line that a terminal shows as it is.

    Names of tensors, files and labels come from strangers: an escape sequence in one could repaint the screen, a line
    break could forge a line of output, a bidirectional override could hide a suffix. Such characters are written as
    JSON writes them, such as \u001b. Brackets of rich markup stay: use `cell` in tables.
    """
    return UNPRINTABLE.sub(lambda match: json.dumps(match[0])[1:-1], str(text))


def say(text: object, err: bool = False) -> None:
    """Print one line on standard output, or on standard error, through `printable`."""
    import typer

    typer.echo(printable(text), err=err)


def cell(text: object, style: str = "") -> "Text":
    """Return a cell, header or title of a rich table that shows `text` literally, brackets included."""
    from rich.text import Text

    return Text(printable(text), style)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message that says something, or the name of its class.

    Where that line ends in a colon, as those of transformers' validators do, the reason is in the next one.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(map(str.strip, lines[: 2 if lines[0].endswith(":") else 1]))


def listing(names: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    """Join at most `most` names in printable form, and count the rest."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{separator.join(map(printable, names[:most]))}{rest}"


def short_path(path: str, length: int = 40) -> str:
    """Cut a path or an address from the left, at a slash if it has one there, to `length` characters."""
    if len(path) <= length:
        return path
    rest = path[-(length - 1) :]
    slash = rest.find("/")
    return f"…{rest[slash:] if 0 <= slash < len(rest) - 1 else rest}"


def as_line(path: str) -> str:
    """Write `path` as one line of valid Unicode, which the name of a file need not be."""
    return path.encode(errors="backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


__all__ = ["as_line", "cell", "first_line", "listing", "printable", "say", "short_path"]
