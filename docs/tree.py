"""Rewrite the tree of the package in README.md: a line for each room, with its lines of code.

    python docs/tree.py

A room's sentence is the first of its docstring.
"""

import ast
import re
from pathlib import Path
from textwrap import shorten

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"(?<=<!-- tree -->\n```text\n).*?(?=```)", re.DOTALL)
WIDTH = 90
LEFT_OUT = ("__init__.py", "__main__.py")


def rooms(package: Path) -> dict[str, tuple[str, int]]:
    """Map each folder and module of `package` to its first sentence and its number of lines."""
    found = {}
    for path in sorted(package.iterdir()):
        files = sorted(path.rglob("*.py"))
        head = path / "__init__.py" if path.is_dir() else path
        if not (files or path.suffix == ".py") or path.name in LEFT_OUT or not head.exists():
            continue
        paragraph = (ast.get_docstring(ast.parse(head.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        sentence = re.split(r"(?<=[a-z)`])\. ", " ".join(paragraph.split()))[0].rstrip(".")
        count = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files or [path])
        found[path.name + "/" * path.is_dir()] = sentence, count
    return found


def tree(package: Path) -> str:
    """Return the block of README, by falling size."""
    lines = [f"{'hf_clip/':<15}{sum(count for _, count in rooms(package).values()):>7,} lines\n"]
    for name, (sentence, count) in sorted(rooms(package).items(), key=lambda item: -item[1][1]):
        lines.append(f"  {name:<13}{count:>7,}  {shorten(sentence, WIDTH, placeholder=' ...')}\n")
    return "".join(lines)


def main() -> None:
    text = README.read_text(encoding="utf-8")
    README.write_text(BLOCK.sub(tree(ROOT / "hf_clip").replace("\\", "\\\\"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
