"""From a checkpoint in the original's file format to labelled images: `python -m examples.demo --help`."""

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image, UnidentifiedImageError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import pipeline
from transformers.utils import logging

import hf_clip  # noqa: F401 (registers the classes)
from conversion.convert import convert
from hf_clip.openai.checkpoints import CHECKPOINTS as PUBLISHED
from hf_clip.openai.checkpoints import CheckpointError, DownloadError

from .shapes import HELD_OUT, PAIRS
from .train_shapes import CHECKPOINTS

IMAGES = Path(__file__).parent / "images"
SHAPE_LABELS = {" ".join(pair): pair for pair in PAIRS}
GENERAL_LABELS = ["a cat", "a dog", "a person", "food", "a car", "a building", "a landscape", "a drawing", "a text"]
BAR_COLOURS = ["#4472b8", "#e8963c"]

DESCRIPTION = """\
Converts checkpoints in the original's file format, classifies images with transformers' stock
zero-shot pipeline, prints what it finds and draws it.

  python -m examples.demo                                  two tiny CLIPs on drawn shapes, without a network
  python -m examples.demo --labels "red,green,blue"        the same images, other labels
  python -m examples.demo --model ViT-B/32 --images cat.jpg --labels "a cat,a dog"
                                                           a published checkpoint (downloaded) on your own image

The tiny models know coloured shapes and nothing else. An image called red-star.png counts as right
where the best label is "red star"."""

# What a model says of an image: labels with scores, best first.
Answer = list[dict]


def classify(checkpoint: str, images: list[Path], labels: list[str], output: Path) -> list[Answer]:
    """Convert `checkpoint` into the folder `output`, and label `images` with the pipeline."""
    convert(checkpoint, output, force=True)
    classifier = pipeline("zero-shot-image-classification", model=str(output))
    return [classifier(str(image), candidate_labels=labels) for image in tqdm(images, desc=output.name, unit="image")]


def truth_of(image: Path, labels: list[str]) -> str | None:
    """The label that a file's name tells, as "red star" of red-star.png."""
    label = image.stem.replace("-", " ")
    return label if label in labels else None


def make_table(images: list[Path], labels: list[str], results: dict[str, list[Answer]]) -> Table:
    """One row per image, one column per model; right or wrong where the file name tells the truth."""
    table = Table("image", "seen", *results, box=SIMPLE_HEAD, caption="seen: whether training showed this pair")
    right = {"yes": [], "never": []}
    for index, image in enumerate(images):
        truth = truth_of(image, labels)
        best = [answers[index][0] for answers in results.values()]
        cells = [f"{answer['label']} {answer['score']:.0%}" for answer in best]
        seen = ""
        if truth in SHAPE_LABELS:
            seen = "never" if SHAPE_LABELS[truth] in HELD_OUT else "yes"
            right[seen].append([answer["label"] == truth for answer in best])
        if truth is not None:
            marks = ["[green]right[/]" if answer["label"] == truth else "[red]wrong[/]" for answer in best]
            cells = [f"{cell} {mark}" for cell, mark in zip(cells, marks, strict=True)]
        table.add_row(image.stem if truth else image.name, seen, *cells)
    table.add_section()
    for seen, rows in right.items():
        if rows:
            counts = [sum(column) for column in zip(*rows, strict=True)]
            table.add_row("right", seen, *(f"{count} of {len(rows)}" for count in counts))
    return table


def draw_picture(images: list[Path], labels: list[str], results: dict[str, list[Answer]], path: Path) -> None:
    """Each image over the three best labels of every model, with bars for their scores."""
    rows = math.ceil(len(images) / 6)
    columns = math.ceil(len(images) / rows)
    size = (2.1 * max(columns, 2), 3.3 * rows + 0.5)
    figure, axes = plt.subplots(2 * rows, columns, figsize=size, squeeze=False, height_ratios=[5, 4] * rows, dpi=150)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, file in enumerate(images):
        row, column = divmod(index, columns)
        picture, bars = axes[2 * row, column], axes[2 * row + 1, column]
        truth = truth_of(file, labels)
        with Image.open(file) as image:
            picture.imshow(image.convert("RGB"))
        picture.set_anchor("S")
        seen = "\nnever in training" if SHAPE_LABELS.get(truth) in HELD_OUT else "\n"
        bars.set_title(f"{truth or file.name}{seen}", fontsize=8)
        for model, (colour, answers) in enumerate(zip(BAR_COLOURS, results.values(), strict=False)):
            for rank, answer in enumerate(answers[index][:3]):
                y = 3.4 * model + rank
                weight = "bold" if answer["label"] == truth else "normal"
                bars.barh(y, 1, color="#f0f0f0", height=0.86)
                bars.barh(y, answer["score"], color=colour, height=0.86, alpha=0.6)
                bars.text(0.03, y, answer["label"], va="center", fontsize=7, weight=weight)
                bars.text(0.97, y, f"{answer['score']:.0%}", va="center", ha="right", fontsize=7, weight=weight)
        bars.set(xlim=(0, 1), ylim=(3.4 * len(results) - 0.9, -0.6))
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour, alpha=0.6) for colour in BAR_COLOURS[: len(results)]]
    figure.legend(handles, list(results), loc="lower center", ncols=len(results), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.25 / size[1], 1, 1), h_pad=0.3)
    figure.savefig(path)
    plt.close(figure)


def check_images(images: list[Path]) -> None:
    for image in images:
        try:
            Image.open(image).close()
        except (OSError, UnidentifiedImageError) as error:
            raise OSError(f"can't read {image} as an image: {error}") from error


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m examples.demo", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help=f"{', '.join(PUBLISHED)}, or a file; default: the two tiny models")
    parser.add_argument("--images", nargs="+", type=Path, metavar="FILE", help="default: examples/images")
    parser.add_argument("--labels", help="separated by commas; default: colours with shapes, or general ones")
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="default: build/demo")
    options = parser.parse_args(arguments)
    options.images = options.images or sorted(IMAGES.glob("*.png"))
    if options.labels is None:
        options.labels = [*SHAPE_LABELS, *(GENERAL_LABELS if options.model else [])]
    else:
        options.labels = [label.strip() for label in options.labels.split(",") if label.strip()]
        if not options.labels:
            parser.error('--labels is empty: give some, as in --labels "a cat,a dog"')
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    logging.disable_progress_bar()
    checkpoints = [options.model] if options.model else [str(path) for path in CHECKPOINTS.values()]
    results = {}
    try:
        check_images(options.images)
        for checkpoint in checkpoints:
            name = PUBLISHED[checkpoint].repo_name if checkpoint in PUBLISHED else Path(checkpoint).stem
            results[name] = classify(checkpoint, options.images, options.labels, options.output / name)
    except (CheckpointError, DownloadError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    Console().print(make_table(options.images, options.labels, results))
    picture = options.output / "demo.png"
    draw_picture(options.images, options.labels, results, picture)
    print(f"wrote {picture} and the converted models {', '.join(str(options.output / name) for name in results)}")


if __name__ == "__main__":
    main()
