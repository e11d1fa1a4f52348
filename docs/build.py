"""Build the documentation site: the pages of docs/, README as its start, and one page for each public name.

    python docs/build.py OUTPUT

OUTPUT/site is the site. Needs the packages of the extra `docs` alone: docstrings are read from the source, without
importing hf_clip or torch.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/hf-clip/hf_clip/blob/main"
PICTURES = {".png", ".svg", ".jpg"}


class Examples(griffe.Extension):
    """Read the section `Example:` of our docstrings as griffe's `Examples:`, so that its code is colored."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def public_names(package: griffe.Module) -> dict[str, str]:
    """Map each public name to its module, as the table `_MODULES` of hf_clip/__init__.py does."""
    table = ast.literal_eval(str(package["_MODULES"].value))
    return {name: module for module, names in table.items() for name in names}


def summary(item: griffe.Object) -> str:
    """Return the first paragraph of a docstring as a cell of a table."""
    return " ".join(item.docstring.value.split("\n\n")[0].split()).replace("|", "\\|")


def with_links(text: str, page: Path, pages: Path) -> str:
    """Point links between files of the repository at pages, at copied pictures, or at the file on GitHub."""

    def replaced(match: re.Match) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if "://" in target or not target:
            return match[0]
        file = (page.parent / target).resolve()
        path = file.relative_to(ROOT).as_posix()
        if file.suffix in PICTURES:
            copy = pages / "pictures" / path.replace("/", "-")
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
            return f"](pictures/{copy.name})"
        if file.parent == ROOT / "docs":
            return f"]({file.name}{anchor})"
        return f"]({REPOSITORY}/{path}{anchor})"

    return re.sub(r"\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)", replaced, text)


def write_pages(output: Path) -> None:
    """Gather everything that the site generator reads, below `output`."""
    shutil.rmtree(output, ignore_errors=True)
    pages = output / "pages"
    (pages / "reference").mkdir(parents=True)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        name = "index.md" if page.name == "README.md" else page.name
        (pages / name).write_text(with_links(page.read_text(encoding="utf-8"), page, pages), encoding="utf-8")
    rooms: dict[str, list[str]] = {}
    index = ["# Reference\n\nEverything that `import hf_clip` offers, by folder of the package.\n"]
    package = griffe.load("hf_clip", search_paths=[ROOT])
    names = public_names(package)
    for name, module in sorted(names.items(), key=lambda item: (item[1].split(".")[0], item[0].lower())):
        room = module.split(".")[0]
        if room not in rooms:
            index.append(f"\n## {room}\n\n| name | |\n|---|---|\n")
        rooms.setdefault(room, []).append(name)
        index.append(f"| [`{name}`]({name}.md) | {summary(package[f'{module}.{name}'])} |\n")
        text = f"---\ntitle: {name}\n---\n\n::: hf_clip.{module}.{name}\n"
        (pages / "reference" / f"{name}.md").write_text(text, encoding="utf-8")
    (pages / "reference" / "index.md").write_text("".join(index), encoding="utf-8")
    groups = [f'{{ "{room}" = [{", ".join(f"{{ {n} = {chr(34)}reference/{n}.md{chr(34)} }}" for n in members)}] }}'
              for room, members in rooms.items()]  # fmt: skip
    reference = f'{{ "Reference" = [{{ "Overview" = "reference/index.md" }}, {", ".join(groups)}] }}'
    config = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    config = config.replace('"@reference"', reference).replace("@root", ROOT.as_posix())
    shutil.copyfile(ROOT / "docs" / "site.css", pages / "site.css")
    (output / "zensical.toml").write_text(config, encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    output = Path(sys.argv[1]).resolve()
    write_pages(output)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    result = subprocess.run(command, cwd=output, check=False, text=True, **pipes)
    print(result.stdout)
    # --strict counts the generator's own warnings; those about docstrings come from griffe
    raise SystemExit(result.returncode or "griffe: " in result.stdout)


if __name__ == "__main__":
    main()
