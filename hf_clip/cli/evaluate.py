"""`hf-clip evaluate`: zero-shot, retrieval, probe and benchmark."""

import json
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..utils.packages import require
from ..utils.text import listing, say
from . import common
from .classify import check_plot, read_labels, read_templates
from .common import STOPPED, CommandError
from .options import AsJson, BatchSize, ComputeDType, Device, Optimize, Precision, Trust, Workers

if TYPE_CHECKING:
    from ..evaluation.results import Result


class Solver(str, Enum):
    """Name what fits a probe."""

    sklearn = "sklearn"
    torch = "torch"


Models = Annotated[
    list[str],
    typer.Option("--model", "-m", metavar="DIR|ID", help="A CLIP; give it again to compare several with the first."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="A .json to write, in the schema of clip_benchmark."),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the result. Needs matplotlib.")]
Store = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep the embeddings of images here: a stopped run goes on, a later one is fast."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Read results that the output has already; refuse those of another model.")
]


def zero_shot(
    data: Annotated[str, typer.Argument(help="Images with labels: class folders, a table, or tars.")],
    model: Models,
    labels: Annotated[
        str | None,
        typer.Option("--labels", "-l", metavar="A,B,C|FILE", help="A name for each class, in the order of the data."),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option("--templates", "-t", metavar="TEXT|FILE", help="Texts with {} for the name, averaged if several."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="NAME", help="Templates of a published evaluation, such as imagenet1k.")
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
    plot: Plot = None,
    store: Store = None,
    resume: Resume = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    dtype: ComputeDType = Precision.float32,
    device: Device = None,
    optimize: Optimize = False,
    trust_remote_code: Trust = False,
) -> None:
    """Measure zero-shot classification: accuracy, and recall by class.

    Example: hf-clip evaluate zero-shot photos --model clip-vit-base-patch32
    """
    if templates and prompts:
        raise CommandError("--templates and --prompts are both given: choose one")
    names = None if labels is None else read_labels(labels)
    texts = None if templates is None else read_templates(templates)
    check_files(output, plot, model)
    from ..evaluation import prompt_sets, tasks

    rows = tasks.as_rows(data)
    if prompts is not None:
        texts = prompt_sets.prompts(prompts).templates
        if not names:
            names = prompt_sets.names_for(rows.labels, prompts)
            if names is not None and names != list(rows.labels):
                pairs = [f"{own} is {label}" for own, label in zip(rows.labels, names, strict=True)]
                say(f"class names of {prompts}: {listing(pairs, 3)}", err=True)
    options: dict[str, Any] = {"dataset": name_of(data), "batch_size": batch_size, "workers": workers, "store": store}

    def measure(loaded: Any, processor: Any) -> "Result":
        return tasks.zero_shot(loaded, processor, rows, names, texts, **options)

    load = loader(dtype, device, optimize, trust_remote_code)
    finish(
        collect(model, load, measure, rows, tasks.prompt_settings(rows, names, texts), output, resume), as_json, plot
    )


def retrieval(
    data: Annotated[str, typer.Argument(help="Images with captions: a table, a folder with metadata.csv, or tars.")],
    model: Models,
    k: Annotated[str, typer.Option(metavar="K,K", help="Places that count as found.")] = "1,5,10",
    output: Output = None,
    as_json: AsJson = False,
    plot: Plot = None,
    store: Store = None,
    resume: Resume = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    dtype: ComputeDType = Precision.float32,
    device: Device = None,
    optimize: Optimize = False,
    trust_remote_code: Trust = False,
) -> None:
    """Measure retrieval both ways: captions by image, images by caption.

    Example: hf-clip evaluate retrieval pairs.csv --model clip-vit-base-patch32
    """
    places = numbers(k)
    check_files(output, plot, model)
    from ..evaluation import tasks

    rows = tasks.as_rows(data).grouped()
    options: dict[str, Any] = {"dataset": name_of(data), "batch_size": batch_size, "workers": workers, "store": store}

    def measure(loaded: Any, processor: Any) -> "Result":
        return tasks.retrieval(loaded, processor, rows, k=places, **options)

    load = loader(dtype, device, optimize, trust_remote_code)
    finish(collect(model, load, measure, rows, {"k": places}, output, resume), as_json, plot)


def probe(
    train: Annotated[str, typer.Argument(help="Images with labels to train on: class folders, a table, or tars.")],
    test: Annotated[str, typer.Argument(help="Images with labels of the same classes.")],
    model: Models,
    validation: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images to search C on (default: a fifth of TRAIN).")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Images to draw from each class (default: all).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    projected: Annotated[
        bool, typer.Option("--projected", help="Probe the embeddings, not the features before the projection.")
    ] = False,
    solver: Annotated[
        Solver, typer.Option(help="scikit-learn as in the paper, or the same by L-BFGS in torch, on the device.")
    ] = Solver.sklearn,
    output: Output = None,
    as_json: AsJson = False,
    plot: Plot = None,
    store: Store = None,
    resume: Resume = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    dtype: ComputeDType = Precision.float32,
    device: Device = None,
    optimize: Optimize = False,
    trust_remote_code: Trust = False,
) -> None:
    """Measure a linear probe: logistic regression on frozen image features.

    Example: hf-clip evaluate probe train test --model clip-vit-base-patch32 --shots 16
    """
    if solver is Solver.sklearn:
        require("sklearn", "eval", "evaluate probe with the solver sklearn")
    check_files(output, plot, model)
    from ..evaluation.probe import linear_probe
    from ..evaluation.tasks import as_rows

    rows, held = as_rows(test), None if validation is None else as_rows(validation)
    known = as_rows(train)
    options: dict[str, Any] = {"dataset": name_of(test), "batch_size": batch_size, "workers": workers, "store": store}
    settings: dict[str, Any] = {"shots": shots, "seed": seed, "projected": projected, "solver": solver.value}

    def measure(loaded: Any, processor: Any) -> "Result":
        return linear_probe(loaded, processor, known, rows, validation=held, **settings, **options)

    load = loader(dtype, device, optimize, trust_remote_code)
    finish(collect(model, load, measure, rows, settings, output, resume), as_json, plot)


def benchmark(
    datasets: Annotated[list[str], typer.Argument(metavar="NAMES...", help="Such as imagenetv2 vtab/dtd flickr30k.")],
    model: Models,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of wds_NAME folders (default: the Hub's).")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--published", metavar="NAME", help="Compare with the figures of one of the nine, e.g. ViT-B/32."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference from a published figure; more exits with 1.")
    ] = 0.002,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag on the Hub.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="A folder for the .json of each data set.")
    ] = None,
    as_json: AsJson = False,
    plot: Plot = None,
    store: Store = None,
    resume: Resume = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    dtype: ComputeDType = Precision.float32,
    device: Device = None,
    optimize: Optimize = False,
    trust_remote_code: Trust = False,
) -> None:
    """Measure published data sets in clip_benchmark's layout, and compare with published figures.

    Example: hf-clip evaluate benchmark imagenetv2 vtab/dtd --model clip-vit-base-patch32 --published ViT-B/32
    """
    if checkpoint is not None and len(model) > 1:
        raise CommandError("--published goes with one --model: run the command for each")
    if resume and output is None:
        raise CommandError("--resume needs the --output that has results")
    check_plot(plot)
    check_names(model, output)
    from ..evaluation import suite

    suite.compare([], checkpoint)
    load = loader(dtype, device, optimize, trust_remote_code)
    found: list[list[Result]] = []
    for name in model:
        folder = output if output is None or len(model) == 1 else output / Path(name).name
        loaded, processor = load(name)
        measured = suite.benchmark(
            loaded,
            processor,
            datasets,
            root,
            output=folder,
            resume=resume,
            revision=revision,
            batch_size=batch_size,
            workers=workers,
            store=store,
            report=lambda line: say(line, err=True),
        )
        found.append(stoppable(partial(list, measured)))
    for results in zip(*found, strict=True):
        if len(model) > 1 or as_json:
            finish(list(results), as_json, None)
    compared = {name: suite.compare(results, checkpoint) for name, results in zip(model, found, strict=True)}
    if plot is not None:
        from ..plots.evaluations import draw_benchmark

        draw_benchmark(compared, tolerance, plot)
        say(f"drawn: {plot}", err=True)
    if len(model) > 1:
        return
    rows = compared[model[0]]
    if not as_json:
        from rich.console import Console

        Console().print(suite.comparison_table(rows, tolerance))
    outside = [row.dataset for row in rows if not row.within(tolerance)]
    if outside:
        say(f"outside the tolerance of {tolerance}: {', '.join(outside)}", err=True)
        raise typer.Exit(1)


# --- what they share --------------------------------------------------------------------------------------------------


def loader(
    dtype: Precision, device: str | None, optimize: bool, trust_remote_code: bool
) -> Callable[[str], tuple[Any, Any]]:
    """Return what loads a model and its processor by name."""
    return lambda name: common.load(name, dtype, device, optimize, trust_remote_code)


def collect(
    models: Sequence[str],
    load: Callable[[str], tuple[Any, Any]],
    measure: Callable[[Any, Any], "Result"],
    rows: Any,
    expected: dict[str, Any],
    output: Path | None,
    resume: bool,
) -> list["Result"]:
    """Measure each model, or read what an earlier run wrote, and write each result as soon as it is known.

    `expected` are settings that an earlier result must have been measured with.
    """
    from ..embedding.identity import name_of as model_name
    from ..evaluation.results import read_result
    from ..evaluation.tasks import settings_of

    if resume and output is None:
        raise CommandError("--resume needs the --output that has results")
    results = []
    for name in models:
        loaded, processor = load(name)
        file = output if output is None or len(models) == 1 else output.with_stem(f"{output.stem}-{Path(name).name}")
        if file is not None and resume and file.exists():
            result = read_result(file)
            result.check_is_of(settings_of(loaded, processor, rows) | expected, model_name(loaded), file)
            say(f"known from {file}", err=True)
        else:
            result = stoppable(partial(measure, loaded, processor))
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


def finish(results: Sequence["Result"], as_json: bool, plot: Path | None) -> None:
    """Print results as a table or as JSON, and draw them."""
    if as_json:
        for result in results:
            say(json.dumps(result.to_json(), ensure_ascii=False))
    else:
        from rich.console import Console

        from ..evaluation.results import comparison

        Console().print(comparison(results))
    if plot is not None:
        from ..plots.evaluations import draw_evaluation

        for result in results:
            file = plot if len(results) == 1 else plot.with_stem(f"{plot.stem}-{Path(result.model).name}")
            draw_evaluation(f"{result.dataset}: {result.model}", result.details, file)
            say(f"drawn: {file}", err=True)


def check_files(output: Path | None, plot: Path | None, models: Sequence[str]) -> None:
    """Raise CommandError, before any work, for files that can't be written or would replace each other."""
    if output is not None and output.suffix != ".json":
        raise CommandError(f"{output} should end in .json")
    check_plot(plot)
    check_names(models, output or plot)


def check_names(models: Sequence[str], written: Path | None) -> None:
    """Raise CommandError if files are written for each model, and models have the same name."""
    names = [Path(model).name for model in models]
    if written and len(set(names)) < len(names):
        raise CommandError(f"models have the same name, {', '.join(names)}: their files would be the same")


def numbers(text: str) -> list[int]:
    """Return the numbers between commas."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise CommandError(f"--k is {text!r}: give numbers with commas between, such as 1,5,10") from None
    return found


def name_of(data: str) -> str:
    """Return the last part of a path without its suffix, as the name in results."""
    return Path(data).stem


COMMANDS: dict[str, Callable[..., None]] = {
    "zero-shot": zero_shot,
    "retrieval": retrieval,
    "probe": probe,
    "benchmark": benchmark,
}
