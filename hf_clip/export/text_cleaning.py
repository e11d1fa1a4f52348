"""The original's text cleaning as normalizer rules of tokenizer.json, for programs without ftfy.

The original runs ftfy and decodes HTML entities twice. Rules cover entities, quotes, ligatures, full-width characters
and control characters. They do not cover mojibake, terminal escapes and the lower case of a final sigma.
"""

import json
from collections.abc import Iterator
from html.entities import name2codepoint
from pathlib import Path
from typing import Any

from ftfy.chardata import CONTROL_CHARS, DOUBLE_QUOTE_RE, LIGATURES, SINGLE_QUOTE_RE, WIDTH_MAP


def add_text_cleaning(file: Path) -> None:
    """Put the rules in front of the normalizers of a tokenizer.json."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    own = tokenizer["normalizer"]
    rest = own["normalizers"] if own["type"] == "Sequence" else [own]
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [*_rules(), *rest]}
    file.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _rules() -> Iterator[dict[str, Any]]:
    # twice: &amp;lt; is < in the original
    for _ in range(2):
        yield _replace("&amp;", "&")
    for name, code in name2codepoint.items():
        if name != "amp":
            yield _replace(f"&{name};", chr(code))
    for character in "'\"<>&":
        for form in (f"&#{ord(character)};", f"&#x{ord(character):x};", f"&#x{ord(character):X};"):
            yield _replace(form, character)
    yield _replace(SINGLE_QUOTE_RE.pattern, "'", regex=True)
    yield _replace(DOUBLE_QUOTE_RE.pattern, '"', regex=True)
    for table in (LIGATURES, WIDTH_MAP):
        for code, text in table.items():
            yield _replace(chr(code), text)
    # the line breaks among them become spaces, as all white space does
    removed = [code for code, text in CONTROL_CHARS.items() if text is None and not chr(code).isspace()]
    yield _replace("[" + "".join(f"\\x{{{code:x}}}" for code in removed) + "]", "", regex=True)


def _replace(pattern: str, content: str, regex: bool = False) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex" if regex else "String": pattern}, "content": content}


__all__ = ["add_text_cleaning"]
