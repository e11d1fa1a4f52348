"""`hf-clip merge`."""

import math
from pathlib import Path
from typing import Annotated

import typer

from ..utils.text import say
from . import common
from .blocks import Loading
from .common import CommandError
from .options import AllowScheme, ExifMode, ExifUse, Force, Trust
from .sources import check_source


def merge(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The model before fine-tuning: a folder, or an id on the Hub.")
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="Its fine-tune: a folder with a model or a LoRA adapter.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    alpha: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Weight of the fine-tune (default: 0.5, for an adapter 1)."),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="FROM:TO:STEP", help="Try several weights, such as 0:1:0.1, and write the best model."),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            "--eval", metavar="DATA", help="Images with captions or labels, to compare the models of --sweep on."
        ),
    ] = None,
    allow_scheme: AllowScheme = None,
    exif: ExifMode = ExifUse.ignore,
    force: Force = False,
    trust_remote_code: Trust = False,
) -> None:
    """Average the weights of a model and its fine-tune (WiSE-FT), or merge an adapter into its model.

    Example: hf-clip merge clip-rn50 tuned --output merged --alpha 0.5
    """
    from ..utils.files import check_output, new_directory

    if (sweep is None) != (eval_data is None) or (sweep is not None and alpha is not None):
        raise CommandError("give --alpha alone, or --sweep with --eval")
    for option, given in (("--allow-scheme", allow_scheme), ("--exif", exif is ExifUse.apply)):
        if given and eval_data is None:
            raise CommandError(f"{option} is for the data of --eval: give both, or neither")
    check_source(base, "merge", "model", "checkpoint")
    check_source(tuned, "merge", "model", "checkpoint", "adapter")
    check_output(output, force)

    from ..training.adapters import is_adapter, merged

    half = 1.0 if is_adapter(tuned) else 0.5  # half an adapter is not what a merge of it is taken for
    shares = [half if alpha is None else alpha] if sweep is None else parse_sweep(sweep)
    from ..training.interpolation import interpolated
    from ..training.report import write_merge_card

    loading = Loading(device="cpu", trust_remote_code=trust_remote_code)
    first, processor = common.load_model(base, loading)
    start = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    model = merged(first, tuned) if is_adapter(tuned) else common.load_model(tuned, loading)[0]
    end = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    share = shares[0]
    if eval_data is not None:
        from ..evaluation.results import size_of_rows
        from ..evaluation.tasks import evaluator_of, to_rows

        rows = to_rows(eval_data, allow_schemes=allow_scheme or ())
        say(f"{eval_data}: {size_of_rows(rows)}")
        evaluate, found = evaluator_of(rows, exif.value), {}
        for share in shares:
            model.load_state_dict(interpolated(start, end, share))
            name, found[share] = evaluate(model.eval(), processor).main
            say(f"alpha {share:g}: {name} {found[share]:.4f}")
        share = max(found, key=lambda one: found[one])
    model.load_state_dict(interpolated(start, end, share))
    with new_directory(output) as work:
        model.save_pretrained(work)
        processor.save_pretrained(work)
        write_merge_card(work, output.absolute().name, base, tuned, share)
    say(f"done: {output}, alpha {share:g}")


def parse_sweep(text: str) -> list[float]:
    """Parse FROM:TO:STEP into the weights to try, both ends included."""
    try:
        start, stop, step = map(float, text.split(":"))
    except ValueError:
        raise CommandError(f"--sweep is {text!r}: give FROM:TO:STEP, such as 0:1:0.1") from None
    if not (0 <= start <= stop <= 1 and step > 0):
        raise CommandError(f"--sweep is {text!r}: go up from 0 or more to 1 or less")
    count = math.floor((stop - start) / step + 1e-9) + 1
    return [round(start + number * step, 9) for number in range(count)]
