"""Options that several verbs share, each declared once."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

# The panel below a verb's own options, for those that most calls leave alone. At most 12 others are shown.
ADVANCED = "Advanced"


class Precision(str, Enum):
    """Dtypes that a model computes in; int8 is for exported folders, and `fastest` stands for one of the others."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8 = "int8"
    fastest = "fastest"


class ExifUse(str, Enum):
    """Uses of the EXIF orientation of photos."""

    ignore = "ignore"
    apply = "apply"


class RowType(str, Enum):
    """Dtypes of stored rows."""

    float32 = "float32"
    float16 = "float16"


ModelId = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH|ID",
        help="One of OpenAI's nine names, such as ViT-B/32 (downloaded once), a file, a folder, or a Hub id.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Device, e.g. cpu or cuda:1 (default: cuda if available).", rich_help_panel=ADVANCED),
]
ComputeDType = Annotated[
    Precision,
    typer.Option(
        "--dtype",
        help="The dtype to compute in; embeddings are float32 in any case. fastest is float16 on a GPU, bfloat16 on a "
        "CPU with instructions for it, else float32. Of an exported folder float16 and int8 take the files in fp16 and "
        "q8.",
        rich_help_panel=ADVANCED,
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per pass through the model.", rich_help_panel=ADVANCED)]
LAYOUT_HELP = "The program that reads the output; `transformers` means its own CLIPModel, which has no ResNet."
READ_AT_A_TIME = "Images to read at a time (default: by the number of cores); use more for URLs."
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=READ_AT_A_TIME,
        rich_help_panel=ADVANCED,
    ),
]
Optimize = Annotated[
    bool,
    typer.Option(
        "--optimize",
        help="Optimize the model for inference (same results up to rounding).",
        rich_help_panel=ADVANCED,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run model code that comes with the repository.", rich_help_panel=ADVANCED
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Stop at the first unreadable image instead of leaving it out.", rich_help_panel=ADVANCED
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of downloaded checkpoints (default: $HF_CLIP_CACHE or ~/.cache/clip).", rich_help_panel=ADVANCED
    ),
]
LabeledImages = Annotated[str, typer.Argument(help="Images with labels: class folders, a table, or tars.")]
ClassifierFile = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The .safetensors to write, for classify --labels.")
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the result. Needs matplotlib.")]
LeastLikeness = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="The least cosine of images that are nearly the same.")
]
Labels = Annotated[
    str | None,
    typer.Option("--labels", "-l", metavar="A,B,C|FILE", help="A name for each class, in the order of the data."),
]
Templates = Annotated[
    list[str] | None,
    typer.Option("--templates", "-t", metavar="TEXT|FILE", help="Prompts with {} for the class, averaged."),
]
Shots = Annotated[int | None, typer.Option(min=1, help="Images to draw from each class (default: all).")]
Seed = Annotated[int, typer.Option(help="Seed of the images that are drawn.", rich_help_panel=ADVANCED)]
Store = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep the embeddings of images here, so that a later run is fast."),
]
ExifMode = Annotated[
    ExifUse,
    typer.Option(
        "--exif",
        rich_help_panel=ADVANCED,
        help="apply: turn photos as their EXIF orientation says; the original ignores it.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted run: keep the finished part of its output.")
]
AllowScheme = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SCHEME",
        rich_help_panel=ADVANCED,
        help="A kind of address that a table or an index may name besides http and https, such as s3; file: paths "
        "outside of its folder. Repeatable.",
    ),
]
Watch = Annotated[
    list[str] | None,
    typer.Option(metavar="[NAME=]DATA", help="Images with labels the model should not forget; repeatable."),
]
License = Annotated[
    str | None,
    typer.Option(
        "--license", metavar="ID", help="License in the card (default: that of the base).", rich_help_panel=ADVANCED
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON objects, one a line.")]
