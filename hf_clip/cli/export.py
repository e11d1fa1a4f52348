"""`hf-clip export`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import Force


class Runtime(str, Enum):
    """Name what runs the exported files."""

    onnx = "onnx"
    openvino = "openvino"


class FileLayout(str, Enum):
    """Name the program whose file names are used."""

    transformers_js = "transformers.js"
    fastembed = "fastembed"
    triton = "triton"
    immich = "immich"


def export(
    source: Annotated[str, typer.Argument(metavar="DIR|ID", help="A folder with a CLIP, or the id of one on the Hub.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    runtime: Annotated[Runtime, typer.Option(help="What will run the files.")] = Runtime.onnx,
    parts: Annotated[str, typer.Option(help="Of vision, text and joint, with commas between.")] = "vision,text",
    precision: Annotated[str, typer.Option(help="Of fp32, fp16 and q8 (8-bit weights), with commas between.")] = "fp32",
    layout: Annotated[FileLayout, typer.Option(help="Whose file names to use.")] = FileLayout.transformers_js,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="Also write graphs from 8-bit RGB to pixels and to embeddings.",
        ),
    ] = False,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Images to calibrate q8 with; a ResNet needs some.")
    ] = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A subfolder of images for each label, to measure every precision on."),
    ] = None,
    force: Force = False,
) -> None:
    """Export a CLIP to ONNX Runtime, OpenVINO or the browser, and measure the files beside the model.

    Writes parity.json with the errors of each file; `hf-clip verify` measures them again. `hf-clip classify`, `embed`
    and `evaluate` take the folder as --model, with `--dtype float16` or `--dtype int8` for its files in fp16 or q8.

    8-bit weights change answers: `--evaluate` says how many, on images like yours, before you rely on them.

    Example: hf-clip export clip-rn50 --output clip-rn50-onnx
    """
    from ..export.engine import export_clip

    export_clip(
        source,
        output,
        runtime=runtime.value,
        parts=_names(parts),
        precisions=_names(precision),
        layout=layout.value,
        preprocessing=with_preprocessing,
        calibration=calibrate,
        evaluation=evaluate,
        force=force,
        report=typer.echo,
    )
    typer.echo(f"done: {output}")


def _names(argument: str) -> list[str]:
    return [name for name in map(str.strip, argument.split(",")) if name]
