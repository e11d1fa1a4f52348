"""Options that several verbs share, each declared once."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

# the panel below a verb's own options: what most calls leave alone (tests/cli/test_options.py counts the others)
ADVANCED = "Advanced"


class Precision(str, Enum):
    """Name the dtype in which a model computes."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8 = "int8"


class RowType(str, Enum):
    """Name the dtype of stored rows."""

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
Device = Annotated[str | None, typer.Option(help="Device, e.g. cpu or cuda:1 (default: cuda if available).")]
ComputeDType = Annotated[
    Precision,
    typer.Option(
        "--dtype",
        help="The dtype to compute in; embeddings are float32 in any case. Of an exported folder float16 and int8 "
        "take the files in fp16 and q8.",
        rich_help_panel=ADVANCED,
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per pass through the model.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads that read images (default: as many as compute); use more for URLs.",
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
    Path | None, typer.Option(help="Folder of downloaded checkpoints (default: $HF_CLIP_CACHE or ~/.cache/clip).")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON objects, one a line.")]
