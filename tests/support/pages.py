"""README.md and docs/, and the code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Return the language and text of each fenced block."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


def with_paths(code: str, folders: dict[str, Path]) -> str:
    """Replace the names of published models by paths."""
    for name in ("RN50", "ViT-B/32", "openai/clip-vit-base-patch32"):
        code = code.replace(f'"{name}"', repr(str(folders[name])))
    return code
