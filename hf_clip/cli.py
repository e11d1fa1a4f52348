"""`hf-clip`: label images, or embed a folder of them, from the command line."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from .feature_store import FeatureStore, Record, as_line, check_output, image_paths, scan
from .score_plot import draw_scores, supported_suffixes
from .zero_shot import SAME_PRECISION, TEMPLATE, ZeroShotClassifier, embed_images, iter_image_embeds, load_clip, name_of

MAX_DRAWN = 64
MAX_NAMED = 10
STOPPED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    help="Label images, or embed a folder of them, with CLIP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class CommandError(ValueError):
    """What the command line asks for can't be done."""


class DType(str, Enum):
    """What a model computes in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


ModelId = Annotated[
    str, typer.Option("--model", "-m", metavar="DIR|ID", help="A folder with a CLIP, or the id of one on the Hub.")
]
Device = Annotated[
    str | None, typer.Option(help="Where to compute, such as cpu or cuda:1; a GPU where there is one, unless given.")
]
Precision = Annotated[DType, typer.Option(help="What to compute in; the embeddings are float32 in any case.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images that go through the model at once.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Threads that read images, as many as compute unless given; addresses want more."),
]
Optimize = Annotated[bool, typer.Option("--optimize", help="Rewrite the model for speed first; equal up to rounding.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code that comes with the repository.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first image that can't be read; else they are left out.")
]


@app.command("classify", no_args_is_help=True)
def classify_command(
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
            "--labels", "-l", metavar="A,B,C|FILE", help="Labels with commas between, or a file of one a line."
        ),
    ],
    model: ModelId,
    templates: Annotated[
        list[str],
        typer.Option(
            "--templates",
            "-t",
            metavar="TEXT|FILE",
            help="The sentence around a label, {} in its place, or a file of one a line. Several, in a file or by "
            "giving the option again, are averaged.",
        ),
    ] = (TEMPLATE,),
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many labels to show of each image.")] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a line: image, and labels with label and score.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Draw the first {MAX_DRAWN} images with their scores. Needs matplotlib."),
    ] = None,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    dtype: Precision = DType.float32,
    device: Device = None,
    optimize: Optimize = False,
    trust_remote_code: Trust = False,
    strict: Strict = False,
) -> None:
    """Say which of the labels each image shows, as soon as it is known.

    Scores are probabilities over all labels. Images that can't be read are listed on standard error.

    Example: hf-clip classify photos --labels "a cat,a dog" --model clip-vit-base-patch32
    """
    if plot is not None:
        check_plot(plot)
    label_list, template_list = read_labels(labels), read_templates(templates)
    paths = expand(images)
    if "-" not in images:
        paths = list(paths)
    loaded, processor = load(model, dtype, device, optimize, trust_remote_code)
    classifier = ZeroShotClassifier(loaded, processor, label_list, template_list)

    skipped, drawn, count = Skipped(), [], 0
    results = classifier.stream(
        paths, top_k, batch_size=batch_size, workers=workers, on_error=None if strict else skipped.add
    )
    total = len(paths) if isinstance(paths, list) else None
    # on a terminal the results themselves show how far it is
    with tqdm(desc="images", total=total, unit="image", disable=sys.stdout.isatty()) as bar:
        for path, answers in results:
            typer.echo(json.dumps({"image": path, "labels": answers}) if as_json else describe(path, answers))
            count += 1
            bar.update()
            if plot is not None and len(drawn) < MAX_DRAWN:
                drawn.append((path, answers))
    skipped.summarize(count)
    if plot is not None:
        draw_scores(drawn, plot)
        note = f", the first {MAX_DRAWN} of {count:,} images" if count > MAX_DRAWN else ""
        typer.echo(f"drawn: {plot}{note}", err=True)


@app.command("embed", no_args_is_help=True)
def embed_command(
    folder: Annotated[Path, typer.Argument(help="Its images, and those of all folders below, hidden ones aside.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A .safetensors, .npy or .parquet (needs pyarrow) to write."
        ),
    ],
    model: ModelId,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Embeddings of length 1, or as the model gives them.")
    ] = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what an earlier run has kept, and replace the output.")
    ] = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    dtype: Precision = DType.float32,
    device: Device = None,
    optimize: Optimize = False,
    trust_remote_code: Trust = False,
    strict: Strict = False,
) -> None:
    """Write the embeddings of all images of a folder, sorted by path, to one file.

    It may be stopped at any time: the same command goes on where it was. Once the output is finished, the same command
    embeds what is new or changed in the folder; for that, OUTPUT.index.jsonl stays beside it.

    The embeddings are float32 (images, dimensions): `embeddings` in a .safetensors, with the paths as JSON in its
    metadata; the array of a .npy, with the paths in a .paths.txt; columns `path` and `embedding` in a .parquet.

    Example: hf-clip embed photos --output features.safetensors --model clip-vit-base-patch32
    """
    if not folder.is_dir():
        raise CommandError(f"there is no folder {folder}.")
    if output.suffix == ".parquet":
        need("pyarrow", output.name)
    images = scan(folder)
    if not images:
        raise CommandError(f"there are no images in {folder}.")
    check_output(output, [record.path for record in images])
    loaded, processor = load(model, dtype, device, optimize, trust_remote_code)
    settings = settings_of(loaded, processor, dtype, normalize)
    skipped = Skipped()
    with FeatureStore(output, settings, SAME_PRECISION, restart) as store:
        pending = [record for record in images if record not in store]
        kept = len(images) - len(pending)
        if kept and pending:
            typer.echo(f"going on: {kept:,} of {len(images):,} images are embedded already", err=True)
        by_path = {images[record]: record for record in pending}
        batches = iter_image_embeds(
            loaded,
            processor,
            list(by_path),
            batch_size=batch_size,
            workers=workers,
            normalize=normalize,
            on_error=None if strict else skipped.add,
        )
        try:
            with tqdm(desc="images", total=len(images), initial=kept, unit="image") as bar:
                for paths, embeds in batches:
                    store.append([by_path[path] for path in paths], embeds.numpy())
                    kept += len(paths)
                    bar.update(len(paths))
            skipped.summarize(kept)
            finish(store, [record for record in images if record in store])
        except KeyboardInterrupt:
            kept = sum(record in store for record in images)
            where = f"kept in {store.partial}" if kept else "finished"
            again = " without --restart" if restart and kept else ""
            typer.echo(
                f"stopped: {kept:,} of {len(images):,} images are {where}; run the same command{again} to go on",
                err=True,
            )
            raise typer.Exit(STOPPED) from None


def finish(store: FeatureStore, records: Sequence[Record]) -> None:
    if store.holds(records):
        typer.echo(f"{store.output} is complete: {len(records):,} images, none of them new")
    else:
        store.finish(records)
        typer.echo(f"done: {store.output}, {len(records):,} embeddings of {store.settings['dim']} dimensions")


def settings_of(model: PreTrainedModel, processor: Any, dtype: DType, normalize: bool) -> dict[str, Any]:
    """What embeddings that go into one file must have in common."""
    ramp = np.add.outer(np.arange(200), np.arange(300) * 2)  # (H, W)
    probe = Image.fromarray(np.stack([ramp, ramp * 3, ramp * 7], -1).astype(np.uint8))
    embeds = embed_images(model, processor, probe)[0].tolist()
    return {
        "model": name_of(model),
        "dtype": dtype.value,
        "normalize": normalize,
        "dim": len(embeds),
        "probe": embeds,
    }


# --- arguments --------------------------------------------------------------------------------------------------------


def expand(arguments: Iterable[str]) -> Iterator[str]:
    """The images that `arguments` stand for; what isn't there fails when it is opened."""
    for argument in arguments:
        if argument == "-":
            yield from (line for line in map(str.strip, sys.stdin) if line)
        elif os.path.isdir(argument):
            found = image_paths(argument)
            if not found:
                raise CommandError(f"there are no images in {argument}.")
            yield from found
        elif set(argument) & set("*?[") and not os.path.exists(argument):
            found = sorted(path for path in glob(argument, recursive=True) if os.path.isfile(path))
            if not found:
                raise CommandError(f"no file matches {argument}.")
            yield from found
        else:
            yield argument


def read_labels(argument: str) -> list[str]:
    if os.path.isfile(argument):
        return read_lines(argument)
    if "," not in argument and Path(argument).suffix == ".txt":
        raise CommandError(f"there is no file {argument}.")
    return [label for label in map(str.strip, argument.split(",")) if label]


def read_templates(arguments: Iterable[str]) -> list[str]:
    """Texts with braces as they are, anything else as a file."""
    return [text for argument in arguments for text in ([argument] if "{" in argument else read_lines(argument))]


def read_lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CommandError(f"there is no file {path}, and as a template it lacks {{}}.") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not a text in UTF-8: {error}") from error
    return [line for line in map(str.strip, text.splitlines()) if line]


def check_plot(output: Path) -> None:
    need("matplotlib", "--plot")
    if output.suffix not in supported_suffixes():
        raise CommandError(f"{output} should end in {', '.join(sorted(supported_suffixes()))}.")
    if not output.absolute().parent.is_dir():
        raise CommandError(f"can't write {output}: there is no folder {output.parent}.")


def need(package: str, purpose: str) -> None:
    if find_spec(package) is None:
        raise CommandError(f"{purpose} needs {package}: pip install {package}")


def load(
    model_id: str, dtype: DType, device: str | None, optimize: bool, trust_remote_code: bool
) -> tuple[PreTrainedModel, Any]:
    """Model, in evaluation mode on its device, and processor."""
    looks_local = model_id.startswith((".", "~", os.sep)) or model_id.count("/") > 1
    if looks_local and not os.path.isdir(model_id):
        raise CommandError(f"there is no folder {model_id}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"can't compute on {device}: {first_line(error)}") from error
    logging.disable_progress_bar()
    try:
        model, processor = load_clip(
            model_id,
            device=device,
            dtype=getattr(torch, dtype.value),
            optimize=optimize,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # of a file that is broken, whatever its reader raises
        raise CommandError(f"can't load {model_id}: {first_line(error)}") from error
    if not hasattr(model, "get_image_features"):
        raise CommandError(f"{model_id} is a {type(model).__name__}, not a CLIP with both towers.")
    return model, processor


# --- output -----------------------------------------------------------------------------------------------------------


class Skipped:
    """The images that could not be read."""

    def __init__(self):
        self.paths = []

    def add(self, path: str, error: Exception) -> None:
        self.paths.append(as_line(path))
        tqdm.write(f"skipped: {as_line(first_line(error))}", file=sys.stderr)

    def summarize(self, read: int) -> None:
        """Name them. Raises CommandError where no other image could be read."""
        if not self.paths:
            if not read:
                raise CommandError("there are no images.")
            return
        more = f" and {len(self.paths) - MAX_NAMED:,} more" if len(self.paths) > MAX_NAMED else ""
        summary = (
            f"{len(self.paths):,} of {len(self.paths) + read:,} images could not be read: "
            f"{', '.join(self.paths[:MAX_NAMED])}{more}"
        )
        if not read:
            raise CommandError(summary)
        typer.echo(summary, err=True)


def describe(path: str, answers: list[dict[str, Any]]) -> str:
    return f"{as_line(path)}: " + ", ".join(f"{answer['label']} {answer['score']:.1%}" for answer in answers)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> None:
    try:
        app()
    except torch.OutOfMemoryError:
        typer.echo("error: the GPU's memory is too small for this: try a smaller --batch-size.", err=True)
        raise SystemExit(1) from None
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
