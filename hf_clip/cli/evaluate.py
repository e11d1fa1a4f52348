"""`hf-clip evaluate`: zero-shot, retrieval, probe and benchmark."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..utils.files import check_output
from ..utils.packages import require
from ..utils.text import listing, say
from . import common
from .blocks import Loading, Reading, expanded
from .classify import check_plot, read_labels, read_templates
from .common import STOPPED, CommandError
from .options import (
    ADVANCED,
    AllowScheme,
    AsJson,
    Force,
    LabeledImages,
    Labels,
    Plot,
    Resume,
    Seed,
    Shots,
    Store,
    Templates,
)

if TYPE_CHECKING:
    from ..evaluation.results import Result


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Options of all four verbs: the models, the files to write, and how images are embedded."""

    model: Annotated[
        list[str],
        typer.Option(
            "--model", "-m", metavar="NAME|PATH|ID", help="A CLIP; repeat it to compare others with the first."
        ),
    ]
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A .json to write, in the schema of clip_benchmark."),
    ] = None
    as_json: AsJson = False
    plot: Plot = None
    store: Store = None
    resume: Resume = False
    force: Force = False
    reading: Reading
    loading: Loading

    @property
    def embedding(self) -> dict[str, Any]:
        """Return the arguments of evaluators that say how images are embedded."""
        return self.reading.options | {"store": self.store}


@expanded
def zero_shot(
    data: LabeledImages,
    labels: Labels = None,
    templates: Templates = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="NAME", help="Prompts of a published evaluation, such as imagenet1k.")
    ] = None,
    allow_scheme: AllowScheme = None,
    *,
    options: Measured,
) -> None:
    """Measure zero-shot classification: accuracy, and recall by class.

    Where an image may show several classes, mean average precision is measured instead.

    Example: hf-clip evaluate zero-shot photos --model clip-vit-base-patch32
    """
    if templates and prompts:
        raise CommandError("--templates and --prompts are both given: choose one")
    names = None if labels is None else read_labels(labels)
    texts = None if templates is None else read_templates(templates)
    check_files(options)
    from ..evaluation import prompt_sets, tasks

    rows = tasks.to_rows(data, allow_schemes=allow_scheme or ())
    if prompts is not None:
        texts = prompt_sets.prompts(prompts).templates
        say(f"prompts of {prompts}: {len(texts)} templates, as clip_benchmark has them", err=True)
        if not names:
            names = prompt_sets.names_for(rows.labels, prompts)
            if names is not None and names != list(rows.labels):
                pairs = [f"{own} is {label}" for own, label in zip(rows.labels, names, strict=True)]
                say(f"class names of {prompts}: {listing(pairs, 3)}", err=True)

    def evaluate(model: Any, processor: Any) -> "Result":
        return tasks.zero_shot(model, processor, rows, names, texts, dataset=Path(data).stem, **options.embedding)

    show(evaluate_all(options, evaluate, rows, tasks.prompt_settings(rows, names, texts)), options)


@expanded
def retrieval(
    data: Annotated[str, typer.Argument(help="Images with captions: a table, a folder with metadata.csv, or tars.")],
    k: Annotated[str, typer.Option(metavar="K,K", help="A search that finds its match in the first K is a hit.")] = (
        "1,5,10"
    ),
    allow_scheme: AllowScheme = None,
    *,
    options: Measured,
) -> None:
    """Measure retrieval both ways: captions by image, images by caption.

    Example: hf-clip evaluate retrieval pairs.csv --model clip-vit-base-patch32
    """
    places = read_places(k)
    check_files(options)
    from ..evaluation import tasks

    rows = tasks.to_rows(data, allow_schemes=allow_scheme or ()).grouped()

    def evaluate(model: Any, processor: Any) -> "Result":
        return tasks.retrieval(model, processor, rows, k=places, dataset=Path(data).stem, **options.embedding)

    show(evaluate_all(options, evaluate, rows, {"k": places}), options)


@expanded
def probe(
    train: Annotated[str, typer.Argument(help="Images with labels to train on: class folders, a table, or tars.")],
    test: Annotated[str, typer.Argument(help="Images with labels of the same classes.")],
    validation: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images to search C on (default: a fifth of TRAIN).")
    ] = None,
    shots: Shots = None,
    seed: Seed = 0,
    projected: Annotated[
        bool,
        typer.Option(
            "--projected",
            help="Probe the embeddings, not the features before the projection.",
            rich_help_panel=ADVANCED,
        ),
    ] = False,
    inverse_strength: Annotated[
        float | None,
        typer.Option("--C", min=0, help="Inverse strength of the regularization (default: searched)."),
    ] = None,
    allow_scheme: AllowScheme = None,
    *,
    options: Measured,
) -> None:
    """Measure a linear probe: logistic regression on frozen image features.

    Example: hf-clip evaluate probe train test --model clip-vit-base-patch32 --shots 16
    """
    require("sklearn", "eval", "evaluate probe")
    check_files(options)
    from ..evaluation.probe import linear_probe
    from ..evaluation.tasks import to_rows

    read = partial(to_rows, allow_schemes=allow_scheme or ())
    rows, held = read(test), None if validation is None else read(validation)
    known = read(train)
    settings: dict[str, Any] = {"shots": shots, "seed": seed, "projected": projected, "C": inverse_strength}

    def evaluate(model: Any, processor: Any) -> "Result":
        name = Path(test).stem
        return linear_probe(
            model, processor, known, rows, validation=held, dataset=name, **settings, **options.embedding
        )

    show(evaluate_all(options, evaluate, rows, settings), options)


@expanded
def benchmark(
    datasets: Annotated[list[str], typer.Argument(metavar="NAMES...", help="Such as imagenetv2 vtab/dtd flickr30k.")],
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of wds_NAME folders (default: the Hub's).")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--published", metavar="NAME", help="Compare with the figures of one of the nine, e.g. ViT-B/32."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Largest difference from a published figure; more exits with 1 (default: by data set)."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag on the Hub.", rich_help_panel=ADVANCED)
    ] = None,
    *,
    options: Measured,
) -> None:
    """Measure published data sets in clip_benchmark's layout, and compare with published figures.

    --output is a folder here, for the .json of each data set.

    Example: hf-clip evaluate benchmark imagenetv2 vtab/dtd --model clip-vit-base-patch32 --published ViT-B/32
    """
    models, output = options.model, options.output
    if checkpoint is not None and len(models) > 1:
        raise CommandError("--published goes with one --model: run the command for each")
    if options.resume and output is None:
        raise CommandError("--resume needs the --output that has results")
    check_plot(options.plot, options.force)
    if output is not None:
        check_output(output, options.force or options.resume)
    check_names(models, output)
    from ..evaluation import suite

    suite.compare([], checkpoint)
    found: list[list[Result]] = []
    for name in models:
        folder = output if output is None or len(models) == 1 else output / Path(name).name
        loaded, processor = common.load_model(name, options.loading)
        running = suite.benchmark(
            loaded,
            processor,
            datasets,
            root,
            output=folder,
            resume=options.resume,
            revision=revision,
            report=lambda line: say(line, err=True),
            **options.embedding,
        )
        found.append(stoppable(partial(list, running)))
    for results in zip(*found, strict=True):
        if len(models) > 1 or options.as_json:
            print_results(list(results), options.as_json)
    compared = {name: suite.compare(results, checkpoint) for name, results in zip(models, found, strict=True)}
    if options.plot is not None:
        from ..plots.evaluations import draw_benchmark

        draw_benchmark(compared, tolerance, options.plot)
        say(f"drawn: {options.plot}", err=True)
    if len(models) > 1:
        return
    rows = compared[models[0]]
    if not options.as_json:
        from rich.console import Console

        Console().print(suite.comparison_table(rows, tolerance))
    outside = [row.dataset for row in rows if not row.within(tolerance)]
    if outside:
        limit = "their tolerances" if tolerance is None else f"the tolerance of {tolerance}"
        say(f"outside {limit}: {', '.join(outside)}", err=True)
        raise typer.Exit(1)


# --- what they share --------------------------------------------------------------------------------------------------


def evaluate_all(
    options: Measured, evaluate: Callable[[Any, Any], "Result"], rows: Any, expected: dict[str, Any]
) -> list["Result"]:
    """Evaluate each model, or read the result of an earlier run; each result is written as soon as it is known.

    `expected` are settings that an earlier result must have been measured with.
    """
    from ..embedding.identity import name_of
    from ..evaluation.results import read_result
    from ..evaluation.tasks import settings_of

    output = options.output
    if options.resume and output is None:
        raise CommandError("--resume needs the --output that has results")
    results = []
    for name in options.model:
        loaded, processor = common.load_model(name, options.loading)
        file = output and file_of(output, name, options.model)
        if file is not None and options.resume and file.exists():
            result = read_result(file)
            result.check_is_of(
                settings_of(loaded, processor, rows, options.reading.exif.value) | expected, name_of(loaded), file
            )
            say(f"known from {file}", err=True)
        else:
            result = stoppable(partial(evaluate, loaded, processor))
            if file is not None:
                result.save(file)
        results.append(result)
    return results


def stoppable(work: Callable[[], Any]) -> Any:
    """Run the work; Ctrl-C ends the command with a sentence."""
    try:
        return work()
    except KeyboardInterrupt:
        say("stopped: with --store and --resume the same command goes on", err=True)
        raise typer.Exit(STOPPED) from None


def show(results: Sequence["Result"], options: Measured) -> None:
    """Print results, and draw them if asked to."""
    print_results(results, options.as_json)
    if options.plot is not None:
        from ..evaluation.results import size_of_settings
        from ..plots.evaluations import draw_evaluation

        for result in results:
            file = file_of(options.plot, result.model, [other.model for other in results])
            size, chance = size_of_settings(result.settings)
            title = f"{result.dataset}: {Path(result.model).name}\n{size}"
            draw_evaluation(title, result.details, file, chance)
            say(f"drawn: {file}", err=True)


def print_results(results: Sequence["Result"], as_json: bool) -> None:
    """Print results as one table, or as one JSON object each."""
    if as_json:
        for result in results:
            say(json.dumps(result.to_json(), ensure_ascii=False))
        return
    from rich.console import Console

    from ..evaluation.results import comparison

    Console().print(comparison(results))


def check_files(options: Measured) -> None:
    """Raise CommandError, before any work, for files that cannot be written or would replace each other."""
    for name in options.model:
        if options.output is not None:
            check_output(file_of(options.output, name, options.model), options.force or options.resume, [".json"])
        check_plot(options.plot and file_of(options.plot, name, options.model), options.force)
    check_names(options.model, options.output or options.plot)


def file_of(path: Path, model: str, models: Sequence[str]) -> Path:
    """Return the file for one model: `path`, with the model's name in it where there are several."""
    return path if len(models) == 1 else path.with_stem(f"{path.stem}-{Path(model).name}")


def check_names(models: Sequence[str], written: Path | None) -> None:
    """Raise CommandError if files are written for each model, and models have the same name."""
    names = [Path(model).name for model in models]
    if written and len(set(names)) < len(names):
        raise CommandError(f"models have the same name, {', '.join(names)}: their files would be the same")


def read_places(text: str) -> list[int]:
    """Read the numbers of --k."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CommandError(f"--k is {text!r}: give numbers with commas between, such as 1,5,10") from None


COMMANDS: dict[str, Callable[..., None]] = {
    "zero-shot": zero_shot,
    "retrieval": retrieval,
    "probe": probe,
    "benchmark": benchmark,
}
