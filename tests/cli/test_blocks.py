"""Blocks of options in a verb's signature."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from hf_clip.cli.blocks import Loading, Reading, Without, expanded
from hf_clip.cli.options import ExifUse, Precision


@dataclass(frozen=True, kw_only=True)
class Both:
    first: Annotated[str, typer.Option(help="Must be given.")]
    reading: Reading
    last: bool = False


seen = {}


@expanded
def verb(
    data: str,
    around: int = 1,
    *,
    both: Both,
    loading: Annotated[Loading, Without("optimize"), Without("device")],
    after: bool = False,
) -> None:
    """Do it."""
    seen.update(data=data, around=around, both=both, loading=loading, after=after)


@pytest.fixture
def app() -> typer.Typer:
    seen.clear()
    app = typer.Typer()
    app.command()(verb)
    return app


def test_options_stand_where_their_block_stood_and_needed_ones_first(app):
    names = [param.name for param in typer.main.get_command(app).params]
    options = ["batch_size", "workers", "exif", "last", "dtype", "trust_remote_code", "after"]
    assert names[: len(options) + 3] == ["data", "first", "around", *options]


def test_a_verb_gets_its_blocks(app):
    arguments = ["x", "--first", "y", "--workers", "3", "--exif", "apply", "--dtype", "float16", "--after"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert seen == {
        "data": "x",
        "around": 1,
        "both": Both(first="y", reading=Reading(workers=3, exif=ExifUse.apply)),
        "loading": Loading(Precision.float16),
        "after": True,
    }


def test_an_option_that_is_left_out_does_not_exist(app):
    assert CliRunner().invoke(app, ["x", "--first", "y", "--optimize"]).exit_code == 2


def test_a_verb_can_be_called(app):
    verb(data="x", first="y", batch_size=2)
    assert seen["both"].reading == Reading(batch_size=2)
    with pytest.raises(TypeError, match="first"):
        verb(data="x")
