"""Blocks of options that several verbs have together, and the decorator that puts them into a verb's signature."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from .errors import CommandError
from .options import BatchSize, ComputeDType, Device, ExifMode, ExifUse, Optimize, Precision, Trust, Workers

if TYPE_CHECKING:
    from ..zero_shot.head import Mode

OPTION = inspect.Parameter.KEYWORD_ONLY
WITHOUT_DEFAULT = inspect.Parameter.empty


@dataclass(frozen=True)
class Reading:
    """Options of reading images and embedding them."""

    batch_size: BatchSize = 32
    workers: Workers = None
    exif: ExifMode = ExifUse.ignore

    @property
    def options(self) -> dict[str, Any]:
        """Return the arguments of functions that embed images."""
        return {"batch_size": self.batch_size, "workers": self.workers, "exif": self.exif.value}


@dataclass(frozen=True)
class Loading:
    """Options of loading a model."""

    dtype: ComputeDType = Precision.float32
    device: Device = None
    optimize: Optimize = False
    trust_remote_code: Trust = False


@dataclass(frozen=True)
class DecisionMode:
    """Options of a classifier's mode."""

    none: Annotated[
        bool, typer.Option("--none", help="Add the answer 'none of these': a text of the background fits better.")
    ] = False
    each: Annotated[
        bool, typer.Option("--each", help="Score each label by itself: an image may show several, or none.")
    ] = False
    background: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C|FILE",
            help="With --none or --each: what else images may show (default: object, things, stuff, texture).",
        ),
    ] = None

    def name(self) -> "Mode":
        """Return the mode of a classifier; raise CommandError for two."""
        if self.none and self.each:
            raise CommandError("--none and --each are both given: with --each an image may show none of the labels")
        return "any" if self.none else "each" if self.each else "one"


@dataclass(frozen=True)
class Without:
    """Left in `Annotated[Block, Without("option")]`: the verb lacks the option, which keeps its default."""

    option: str


ExactLoading = Annotated[Loading, Without("optimize")]


def expanded(verb: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a verb whose type is a block by the options of the block, which the verb gets whole.

    typer reads the signature of the result. A block is a frozen dataclass of options, or of other blocks.
    """
    own = inspect.signature(verb, eval_str=True).parameters.values()
    options = [option for each in own for option in _options(each.name, each.annotation, each.default)]
    # what must be given comes first in the help
    options.sort(key=lambda option: option.default is not WITHOUT_DEFAULT)
    signature = inspect.Signature(options)

    @wraps(verb)
    def command(**given: Any) -> None:
        bound = signature.bind(**given)
        bound.apply_defaults()
        verb(**{each.name: _value(each.name, each.annotation, bound.arguments) for each in own})

    command.__signature__ = signature  # type: ignore[attr-defined]
    return command


def _options(name: str, annotation: Any, default: Any) -> Iterator[inspect.Parameter]:
    """Yield a parameter of a verb, or the options of the block that it stands for."""
    block = _block(annotation)
    if block is None:
        yield inspect.Parameter(name, OPTION, default=default, annotation=annotation)
        return
    _, held = block
    for option, (inner, given) in held.items():
        yield from _options(option, inner, given)


def _value(name: str, annotation: Any, given: Mapping[str, Any]) -> Any:
    """Return the value of a parameter of a verb, or its block, by the options that are given."""
    block = _block(annotation)
    if block is None:
        return given[name]
    kind, held = block
    return kind(**{option: _value(option, inner, given) for option, (inner, _) in held.items()})


def _block(annotation: Any) -> tuple[Callable[..., Any], dict[str, tuple[Any, Any]]] | None:
    """Return the block that a type stands for, and type and default of each of its options; None for other types."""
    kind, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return None
    left_out = {note.option for note in notes if isinstance(note, Without)}
    hints = get_type_hints(kind, include_extras=True)
    held = {
        each.name: (hints[each.name], WITHOUT_DEFAULT if each.default is MISSING else each.default)
        for each in fields(kind)
        if each.name not in left_out
    }
    return kind, held
