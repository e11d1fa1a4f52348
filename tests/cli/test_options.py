"""Options over all verbs: few at first sight, one meaning for a name, and help that a narrow terminal shows."""

from collections import defaultdict

import pytest
import typer

from hf_clip.cli.app import app
from hf_clip.cli.options import ADVANCED

MAX_SHOWN = 12
# these say in one way, over all verbs, what one name does
ONE_MEANING = (
    "--dtype", "--resume", "--workers", "--layout", "--force", "--device", "--json", "--trust-remote-code", "--exif",
    "--allow-scheme",
)  # fmt: skip


def verbs(command, name: str = "") -> dict:
    """Return all verbs of a command as typer's click objects, by their names with their groups'."""
    if not hasattr(command, "commands"):
        return {name: command}
    return {
        verb: leaf
        for part, inner in command.commands.items()
        for verb, leaf in verbs(inner, f"{name} {part}".strip()).items()
    }


VERBS = verbs(typer.main.get_command(app))


def options(verb: str) -> list:
    return [param for param in VERBS[verb].params if param.param_type_name == "option"]


@pytest.mark.parametrize("verb", VERBS)
def test_few_options_are_shown_first(verb):
    shown = [option.name for option in options(verb) if option.rich_help_panel is None]
    panels = {option.rich_help_panel for option in options(verb)} - {None}
    assert panels <= {ADVANCED}
    assert len(shown) <= MAX_SHOWN, shown


def meanings(name: str) -> dict:
    """Return the verbs by what they say that the option `name` does."""
    found = defaultdict(set)
    for verb in VERBS:
        for option in options(verb):
            if name in option.opts:
                found[option.help, option.rich_help_panel].add(verb)
    return found


@pytest.mark.parametrize("name", ONE_MEANING)
def test_a_name_means_one_thing(name):
    assert len(meanings(name)) == 1, meanings(name)


# these read images of this machine alone, or those that came with a request
WITHOUT_ADDRESSES = {"export", "serve", "evaluate benchmark"}


def test_verbs_that_read_images_are_told_which_addresses_to_read():
    reading = {verb for verb in VERBS if {"exif", "html"} & {option.name for option in options(verb)}}
    allowing = {verb for verb in VERBS if "allow_scheme" in {option.name for option in options(verb)}}
    assert allowing == reading - WITHOUT_ADDRESSES


def test_every_option_is_explained():
    for verb in VERBS:
        for option in options(verb):
            assert option.help, (verb, option.name)


def test_placeholders_are_of_one_style():
    """One word for one thing: a model, a directory."""
    found = {param.metavar for verb in VERBS for param in VERBS[verb].params if param.metavar}
    assert not {name for name in found if "FOLDER" in name or "DIR|ID" in name or name.islower()}
    assert {option.metavar for verb in VERBS for option in options(verb) if option.name == "model"} == {"NAME|PATH|ID"}
