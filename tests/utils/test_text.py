import ast
import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from hf_clip.utils.text import cell, listing, printable, say, short_path

HOSTILE = {
    "clears the screen": ("a\x1b[2Jb", "a\\u001b[2Jb"),
    "renames the window": ("\x1b]0;x\x07", "\\u001b]0;x\\u0007"),
    "8-bit escape": ("a\x9b31m", "a\\u009b31m"),
    "forges a line": ("x.png\nerror: none\r", "x.png\\nerror: none\\r"),
    "line separators": ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\u0085d"),
    "hides a suffix": ("photo\u202egnp.exe", "photo\\u202egnp.exe"),
    "bytes that are no UTF-8": ("a\udcffb", "a\\udcffb"),
    "invisible tags": ("a\U000e0041b", "a\\udb40\\udc41b"),
}
PLAIN = ["a red car", "人人生而自由　赤", "👩‍👩‍👧‍👦 ❤️", "naïve [b] C:\\new", "شسی‌بل"]


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_foreign_text_cannot_steer_a_terminal(text, shown, capsys):
    assert printable(text) == shown
    say(text)
    say(text, err=True)
    assert capsys.readouterr() == (f"{shown}\n", f"{shown}\n")
    assert listing([text]) == shown


@pytest.mark.parametrize("text", PLAIN)
def test_text_of_any_script_stays_as_it_is(text):
    assert printable(text) == text


def test_lines_of_json_stay_json():
    name = "a\x1b[2J\u202e\x9bb\n"
    line = printable(json.dumps({"path": name}, ensure_ascii=False))
    assert json.loads(line) == {"path": name}


@pytest.mark.parametrize("name", ["photos [old]", "runs[/x]", "[bold red]x", "a\x1b[2J"])
def test_cells_show_brackets(name):
    table = Table("model", title=cell(name))
    table.add_column(cell(name))
    table.add_row(cell(name), "")
    console = Console(file=StringIO(), width=80, color_system=None)
    console.print(table)
    assert console.file.getvalue().count(printable(name)) == 3
    assert "\x1b" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("path", "length", "expected"),
    [
        ("runs/tuned", 40, "runs/tuned"),
        ("/home/someone/models/clip/run-7/best", 20, "…/clip/run-7/best"),
        ("/home/someone/models/run-7-with-a-long-name", 20, "…-7-with-a-long-name"),
        ("/home/someone/models/run-7/", 12, "…/run-7/"),
    ],
)
def test_a_path_is_cut_from_the_left(path, length, expected):
    assert short_path(path, length) == expected
    assert len(expected) <= max(length, len(path) * (path == expected))


def printing_calls(path: Path) -> list[str]:
    """List the calls of a module that print without `say`."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [name for name in map(ast.unparse, calls) if name in ("print", "typer.echo", "click.echo", "typer.secho")]


@pytest.mark.parametrize("folder", ["hf_clip/cli", "conversion"])
def test_verbs_print_through_one_function(folder):
    root = Path(__file__).parents[2]
    assert {path.name: found for path in (root / folder).glob("*.py") if (found := printing_calls(path))} == {}
