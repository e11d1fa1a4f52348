"""`hf-clip merge`."""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.packages import install_command
from ..utils.text import say
from . import common
from .blocks import Loading
from .common import CommandError
from .finetune import watched_sets
from .options import AllowScheme, ExifMode, ExifUse, Force, License, Trust, Watch
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
    watch: Watch = None,
    allow_scheme: AllowScheme = None,
    exif: ExifMode = ExifUse.ignore,
    license_id: License = None,
    force: Force = False,
    trust_remote_code: Trust = False,
) -> None:
    """Average the weights of a model and its fine-tune (WiSE-FT), or merge an adapter into its model.

    With --sweep the best by --eval is written, or with --watch the best mean of both. OUTPUT gets sweep.json with all
    measures and, where matplotlib is installed, sweep.png.

    Example: hf-clip merge clip-rn50 tuned --output merged --alpha 0.5
    """
    from ..utils.files import check_output, new_directory

    if (sweep is None) != (eval_data is None) or (sweep is not None and alpha is not None):
        raise CommandError("give --alpha alone, or --sweep with --eval")
    for option, given in (
        ("--allow-scheme", allow_scheme),
        ("--exif", exif is ExifUse.apply),
        ("--watch", watch),
    ):
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
    report: dict[str, Any] = {}
    if eval_data is not None:
        from ..evaluation.tasks import evaluator_of, to_rows

        schemes = {"allow_schemes": allow_scheme or ()}
        rows = to_rows(eval_data, **schemes)
        watched = watched_sets(watch or [], None, schemes, exif)
        learned = Path(eval_data).stem
        if learned in watched:
            raise CommandError(
                f"--eval and --watch are both called {learned}: name one, as in --watch kept={eval_data}"
            )
        evaluators = {learned: evaluator_of(rows, exif.value), **watched}
        sizes = {learned: rows, **{name: each.rows for name, each in watched.items()}}
        report = swept(model, processor, (start, end), shares, evaluators, sizes)
        share = report["chosen"]
    model.load_state_dict(interpolated(start, end, share))
    with new_directory(output) as work:
        model.save_pretrained(work)
        processor.save_pretrained(work)
        table = sweep_table(report) if report else ""
        write_merge_card(work, output.absolute().name, base, tuned, share, table, license_id)
        if report:
            write_sweep(work, report)
    say(f"done: {output}, alpha {share:g}")


def swept(
    model: Any,
    processor: Any,
    ends: tuple[dict[str, Any], dict[str, Any]],
    shares: list[float],
    evaluators: dict[str, Any],
    sets: dict[str, Any],
) -> dict[str, Any]:
    """Measure the averages of two state dicts by evaluators; the first one measures the new task.

    Returns:
        What sweep.json holds: the sizes of `sets`, the main metric of each by alpha, and the alpha that is best.
    """
    from ..evaluation.results import size_of_rows
    from ..training.interpolation import interpolated

    sizes = {name: size_of_rows(rows) for name, rows in sets.items()}
    for name, size in sizes.items():
        say(f"{name}: {size}")
    measured: list[dict[str, float]] = []
    for share in shares:
        model.load_state_dict(interpolated(*ends, share))
        found = {name: evaluate(model.eval(), processor).main for name, evaluate in evaluators.items()}
        measured.append({"alpha": share} | {f"{name} {metric}": value for name, (metric, value) in found.items()})
        measures = ", ".join(
            f"{name if len(found) > 1 else ''} {metric} {value:.4f}".strip() for name, (metric, value) in found.items()
        )
        say(f"alpha {share:g}: {measures}")
    return {"data": sizes, "sweep": measured, "chosen": max(measured, key=balance)["alpha"]}


def balance(row: dict[str, float]) -> float:
    """Return the figure that decides a sweep: the mean of the first measure and of the mean of the others."""
    learned, *kept = [value for name, value in row.items() if name != "alpha"]
    return (learned + sum(kept) / len(kept)) / 2 if kept else learned


def sweep_table(report: dict[str, Any]) -> str:
    """Return the measures of a sweep as Markdown."""
    names = list(report["sweep"][0])
    rows = ["| " + " | ".join(f"{row[name]:.4g}" for name in names) + " |" for row in report["sweep"]]
    sizes = [f"- {name}: {size}" for name, size in report["data"].items()]
    return "\n".join([*sizes, "", f"| {' | '.join(names)} |", "|" + "---|" * len(names), *rows])


def write_sweep(folder: Path, report: dict[str, Any]) -> None:
    """Write sweep.json and, if matplotlib is installed, sweep.png."""
    (folder / "sweep.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if find_spec("matplotlib") is None:
        say(f"no sweep.png: {install_command('plot')} to draw it", err=True)
        return
    from ..plots.curves import draw_sweep

    draw_sweep(report["sweep"], report["chosen"], folder / "sweep.png")


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
