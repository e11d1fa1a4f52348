"""From a checkpoint in the original's file format to labeled images: `python -m examples.demo --help`."""

import argparse
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import pipeline
from transformers.utils import logging

import hf_clip  # noqa: F401 (registers the classes)
from hf_clip.openai.convert import convert
from hf_clip.openai.errors import CheckpointError, DownloadError
from hf_clip.openai.published import CHECKPOINTS as PUBLISHED
from hf_clip.plots.scores import draw_scores

from .shapes import HELD_OUT, PAIRS
from .train_shapes import CHECKPOINTS

IMAGES = Path(__file__).parent / "images"
SHAPE_LABELS = {" ".join(pair): pair for pair in PAIRS}
GENERAL_LABELS = ["a cat", "a dog", "a person", "food", "a car", "a building", "a landscape", "a drawing", "a text"]

DESCRIPTION = """\
Converts checkpoints in the original's file format, classifies images with transformers' stock
zero-shot pipeline, prints what it finds and draws it.

  python -m examples.demo                                  two tiny CLIPs on drawn shapes, without a network
  python -m examples.demo --labels "red,green,blue"        the same images, other labels
  python -m examples.demo --model ViT-B/32 --images cat.jpg --labels "a cat,a dog"
                                                           a published checkpoint (downloaded) on your own image

The tiny models know colored shapes and nothing else. An image called red-star.png counts as right
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
    parser.add_argument("--labels", help="separated by commas; default: colors with shapes, or general ones")
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
    truths = [truth_of(image, options.labels) for image in options.images]
    notes = ["never in training" if SHAPE_LABELS.get(truth) in HELD_OUT else "" for truth in truths]
    best = {name: [ranked[:3] for ranked in answers] for name, answers in results.items()}
    draw_scores(options.images, best, picture, truths, notes)
    print(f"wrote {picture} and the converted models {', '.join(str(options.output / name) for name in results)}")


if __name__ == "__main__":
    main()
