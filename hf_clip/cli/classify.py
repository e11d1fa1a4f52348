"""`hf-clip classify`."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.labels import saved_classifier
from ..utils.files import check_output
from ..utils.packages import require
from ..utils.text import say
from . import common
from .blocks import DecisionMode, Loading, Reading, expanded
from .common import CommandError
from .options import AllowScheme, AsJson, ExifUse, Force, ModelId, Strict

if TYPE_CHECKING:
    from ..data.images import ImageRef
    from ..zero_shot.decisions import Decision

MAX_DRAWN = 64
NOTHING = "none of these"
UNSURE = (
    "'none of these' by the default background is a guess: name with --background what else images show, or calibrate"
)


@expanded
def classify(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Files, folders (with all below them, hidden files aside), patterns like 'photos/*.jpg', or - to read "
            "paths from standard input, one a line.",
        ),
    ],
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            "-l",
            metavar="A,B,C|FILE",
            help="Labels with commas between, a file of one a line, or a .safetensors of calibrate or few-shot.",
        ),
    ],
    model: ModelId,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--templates",
            "-t",
            metavar="TEXT|FILE",
            help="The sentence around a label, {} in its place, or a file of one a line. Several, in a file or by "
            "giving the option again, are averaged (default: a photo of a {}.).",
        ),
    ] = None,
    *,
    mode: DecisionMode,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="The least score with which a label is taken (default: the calibrated one, else 0.5 with --each).",
        ),
    ] = None,
    sets: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA",
            help="With a calibrated FILE: show the labels that cannot be excluded; the right one may be missing in "
            "the share ALPHA of images.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Labels to show for each image.")] = 5,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Draw the first {MAX_DRAWN} images with their scores. Needs matplotlib."),
    ] = None,
    force: Force = False,
    reading: Reading,
    loading: Loading,
    strict: Strict = False,
    allow_scheme: AllowScheme = None,
) -> None:
    """Label images with your own words; each line appears as soon as its image is scored.

    Scores are probabilities over all labels, so one label alone scores 100 % whatever the image shows, unless --none or
    --each is given. Unreadable images are listed on standard error. With --json, a line has the image, its labels with
    their scores, the decision, its margin and the reason.

    Example: hf-clip classify photos --labels "a cat,a dog" --model ViT-B/32
    """
    check_plot(plot, force)
    saved, options = classifier_options(labels, templates, mode)
    label_list = [] if saved is not None else read_labels(labels)
    check_split_labels(images, label_list)
    if twice := [label for label, count in Counter(label_list).items() if count > 1]:
        raise CommandError(f"labels are given twice: {', '.join(twice[:10])}")
    paths = expand(images) if "-" in images else list(expand(images))

    from tqdm import tqdm

    from ..data.images import ImageRef, ImageTally, surprises
    from ..exported.model import ExportedCLIP
    from ..zero_shot.classifier import ZeroShotClassifier

    loaded, processor = common.load_embedder(model, loading)
    if saved is not None:
        classifier = ZeroShotClassifier.load(saved, loaded, processor)
    else:
        classifier = ZeroShotClassifier(loaded, processor, label_list, **options)
        if options["mode"] == "any" and "background" not in options:
            say(UNSURE, err=True)
    if isinstance(loaded, ExportedCLIP):
        loaded.release("text")  # the labels are embedded
    has_choice = classifier.head.mode != "one" or bool(classifier.head.least_scores(threshold).any())
    skipped, tally, drawn, count = common.Skipped(), ImageTally(), [], 0
    options = reading.options | {"tally": tally}
    on_error = None if strict else lambda image, error: skipped.add(image.name, error)
    references = (ImageRef.of(path, None, allow_scheme or ()) for path in paths)
    results = classifier.decisions(references, top_k, threshold=threshold, alpha=sets, on_error=on_error, **options)
    total = len(paths) if isinstance(paths, list) else None
    # on a terminal the results themselves show the progress, and a log needs no bar (None)
    with tqdm(desc="images", total=total, unit="image", disable=sys.stdout.isatty() or None) as bar:
        for image, decision in results:
            found = {"image": image.name} | decision.to_json()
            say(json.dumps(found) if as_json else describe(image.name, decision, has_choice))
            count += 1
            bar.update()
            if plot is not None and len(drawn) < MAX_DRAWN:
                drawn.append((image, decision.scores))
    skipped.summarize(count)
    for sentence in surprises(tally.images, tally.rotated, tally.sixteen_bits, reading.exif.value):
        say(sentence, err=True)
    if plot is not None:
        draw(drawn, plot, count, reading.exif)


def draw(results: list[tuple["ImageRef", list[dict[str, Any]]]], output: Path, count: int, exif: ExifUse) -> None:
    """Draw the first of `count` results."""
    from ..plots.scores import draw_scores

    draw_scores([image for image, _ in results], {"": [answers for _, answers in results]}, output, exif=exif.value)
    note = f", the first {MAX_DRAWN} of {count:,} images" if count > MAX_DRAWN else ""
    say(f"drawn: {output}{note}", err=True)


def describe(path: str, decision: "Decision", has_choice: bool) -> str:
    """Return one line for one image; it begins with the labels that are taken if that is a choice."""
    scores = ", ".join(f"{answer['label']} {answer['score']:.1%}" for answer in decision.scores)
    taken = ", ".join(map(str, decision.labels)) or NOTHING
    if decision.prediction_set is not None:
        scores += f"; set: {', '.join(map(str, decision.prediction_set)) or 'empty'}"
    return f"{path}: {taken}  ({scores})" if has_choice else f"{path}: {scores}"


# --- arguments --------------------------------------------------------------------------------------------------------


def expand(arguments: Iterable[str]) -> Iterator[str]:
    """Yield the images that files, folders and patterns stand for; a missing file fails when it is opened."""
    from ..data.images import files_below, image_paths, left_out

    for argument in arguments:
        if argument == "-":
            yield from (line for line in map(str.strip, sys.stdin) if line)
        elif os.path.isdir(argument):
            found, skipped = image_paths(argument), left_out(files_below(argument), argument)
            if not found:
                raise CommandError(f"there are no images in {argument}{skipped and f' that can be read: {skipped}'}")
            if skipped:
                say(f"skipped: {skipped}", err=True)
            yield from found
        elif set(argument) & set("*?[") and not os.path.exists(argument):
            found = sorted(path for path in glob(argument, recursive=True) if os.path.isfile(path))
            if not found:
                raise CommandError(f"no file matches {argument}")
            yield from found
        else:
            yield argument


def classifier_options(
    labels: str | None, templates: Iterable[str] | None, mode: DecisionMode
) -> tuple[Path | None, dict[str, Any]]:
    """Return the file of a saved classifier, if it stands in place of labels, and the options of one to be made."""
    name = mode.name()
    if mode.background is not None and name == "one":
        raise CommandError("--background has no effect by itself: pass --none or --each with it")
    saved = saved_classifier(labels or "")
    if saved is not None and (templates or name != "one"):
        raise CommandError(f"{saved} has its own templates and mode: leave --templates, --none and --each off")
    options: dict[str, Any] = {"mode": name}
    if templates is not None:
        options["templates"] = read_templates(templates)
    if mode.background is not None:
        options["background"] = read_labels(mode.background)
    return saved, options


def read_labels(argument: str) -> list[str]:
    """Return the labels of a file, or those between commas."""
    if os.path.isfile(argument):
        return read_lines(argument)
    if "," not in argument and Path(argument).suffix == ".txt":
        raise CommandError(f"there is no file {argument}")
    return [label for label in map(str.strip, argument.split(",")) if label]


def check_split_labels(images: Iterable[str], labels: Sequence[str]) -> None:
    """Raise CommandError for labels that the shell has split off, as in `--labels red green`."""
    for argument in images:
        looks_like_an_image = Path(argument).suffix or set(argument) & set("*?[/") or os.path.exists(argument)
        if len(labels) == 1 and argument != "-" and not looks_like_an_image:
            raise CommandError(
                f"there is no file or folder {argument}: if it is a label, write --labels "
                f'"{labels[0]},{argument}" with a comma'
            )


def read_templates(arguments: Iterable[str]) -> list[str]:
    """Return texts with braces as they are, and the lines of anything else as a file."""
    return [text for argument in arguments for text in ([argument] if "{" in argument else read_lines(argument))]


def read_lines(path: str) -> list[str]:
    """Return the lines of a file that are not blank, stripped."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CommandError(f"there is no file {path}, and as a template it lacks {{}}") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not a text in UTF-8: {error}") from error
    return [line for line in map(str.strip, text.splitlines()) if line]


def check_plot(output: Path | None, force: bool) -> None:
    """Raise unless matplotlib can write `output`, if there is one; an existing file is kept unless `force`."""
    if output is None:
        return
    require("matplotlib", "plot", "--plot")
    from ..plots.figures import supported_suffixes

    check_output(output, force, supported_suffixes())
    if not output.absolute().parent.is_dir():
        raise CommandError(f"cannot write {output}: there is no folder {output.parent}")
