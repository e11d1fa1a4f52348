"""`hf-clip export`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..utils.text import say
from .options import ExifMode, ExifUse, Force
from .sources import check_source


class Runtime(str, Enum):
    """Runtimes of exported graphs."""

    onnx = "onnx"
    openvino = "openvino"


class TargetName(str, Enum):
    """Programs whose file names an export can have."""

    transformers_js = "transformers.js"
    fastembed = "fastembed"
    triton = "triton"
    immich = "immich"


def export(
    source: Annotated[
        str, typer.Argument(metavar="NAME|PATH|ID", help="One of OpenAI's nine names, a file, a folder, or a Hub id.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    runtime: Annotated[Runtime, typer.Option(help="The runtime of the graphs.")] = Runtime.onnx,
    parts: Annotated[str, typer.Option(help="Some of vision, text, joint, separated by commas.")] = "vision,text",
    precision: Annotated[
        str, typer.Option(help="Some of fp32, fp16, q8 (8-bit weights), separated by commas.")
    ] = "fp32",
    target: Annotated[
        TargetName, typer.Option(help="The program whose file names are used.")
    ] = TargetName.transformers_js,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="Also write graphs from 8-bit RGB to pixels and to embeddings.",
        ),
    ] = False,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Calibration images, required for q8 of a ResNet.")
    ] = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder with one subfolder of images for each label, to evaluate every precision on.",
        ),
    ] = None,
    exif: ExifMode = ExifUse.ignore,
    classifier: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A .safetensors of calibrate or few-shot, to add as classifier.onnx beside the towers."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Export a CLIP to ONNX Runtime, OpenVINO or the browser, and measure each graph against the model.

    The output contains parity.json with the errors of each file; `hf-clip verify` measures them again. `hf-clip
    classify`, `embed` and `evaluate` read the folder as --model; `--dtype float16` and `--dtype int8` select its fp16
    and q8 graphs.

    8-bit weights change predictions: `--evaluate` counts how many, on images like yours.

    Example: hf-clip export clip-rn50 --output clip-rn50-onnx
    """
    check_source(source, "export", "model", "checkpoint")

    from ..export.engine import export_clip

    export_clip(
        source,
        output,
        runtime=runtime.value,
        parts=_names(parts),
        precisions=_names(precision),
        target=target.value,
        preprocessing=with_preprocessing,
        calibration=calibrate,
        evaluation=evaluate,
        exif=exif.value,
        classifier=classifier,
        force=force,
        report=say,
    )
    say(f"done: {output}")


def _names(argument: str) -> list[str]:
    return [name for name in map(str.strip, argument.split(",")) if name]
