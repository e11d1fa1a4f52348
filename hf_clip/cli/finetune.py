"""`hf-clip finetune`."""

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..utils.packages import require
from ..utils.text import say
from . import common
from .classify import read_templates
from .common import STOPPED, CommandError
from .options import ADVANCED, READ_AT_A_TIME, Force, ModelId, Precision, Resume, Strict, Trust
from .sources import check_source

if TYPE_CHECKING:
    from ..evaluation.tasks import ZeroShotSet
    from ..training.trainer import CLIPTrainer

HELD = "data"  # the name of --eval in metrics, if it has labels


class Part(str, Enum):
    """Parts of the model that can be trained."""

    all = "all"
    image = "image"
    text = "text"
    projections = "projections"
    lora = "lora"


def finetune(
    data: Annotated[
        str,
        typer.Argument(
            help="Images with captions or labels: a folder of class folders, a folder with metadata.csv, a "
            ".csv, .tsv, .jsonl or .parquet, or .tar files."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    model: ModelId,
    eval_data: Annotated[
        str | None,
        typer.Option("--eval", metavar="DATA", help="Other data, to evaluate on; the best checkpoint is kept."),
    ] = None,
    watch: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]DATA", help="Images with labels the model should not forget; repeatable."),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option("--templates", "-t", metavar="TEXT|FILE", help="Prompts with {} for the label."),
    ] = None,
    train: Annotated[Part, typer.Option(help="The part to train; `lora` needs peft.")] = Part.all,
    lora_rank: Annotated[int, typer.Option(min=1, help="The rank of LoRA adapters.", rich_help_panel=ADVANCED)] = 8,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3.0,
    lr: Annotated[float | None, typer.Option(help="Learning rate (default: 1e-5, for LoRA 2e-4).")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs per step and process.")] = 128,
    mini_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pairs to encode at a time: less memory, the same gradients.", rich_help_panel=ADVANCED
        ),
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; weights stay in float32.")] = False,
    save_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps between checkpoints and evaluations (default: an epoch).", rich_help_panel=ADVANCED
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the order of the data and of drawn captions.", rich_help_panel=ADVANCED)
    ] = 42,
    resume: Resume = False,
    force: Force = False,
    workers: Annotated[int | None, typer.Option(min=0, help=READ_AT_A_TIME, rich_help_panel=ADVANCED)] = None,
    trust_remote_code: Trust = False,
    strict: Strict = False,
) -> None:
    """Fine-tune a CLIP on your images, with their captions or labels.

    Stop it at any time: with --resume it goes on from the last checkpoint. OUTPUT gets the model, a card, training.json
    with the numbers before and after, and, where matplotlib is installed, training.png. Several GPUs:
    torchrun --nproc-per-node 2 -m hf_clip finetune ...

    Example: hf-clip finetune photos --model clip-vit-base-patch32 --output tuned --eval more-photos
    """
    check_source(model, "finetune", "model", "checkpoint")
    require("accelerate", "train", "finetune")
    if not resume:
        from ..utils.files import check_output

        check_output(output, force)
    from ..data.read import read_rows
    from ..training.datasets import PairDataset

    given = read_templates(templates) if templates else None
    dataset = PairDataset(read_rows(data), templates=given, seed=seed)
    held = read_rows(eval_data) if eval_data is not None else None
    watched = watched_sets(watch or [], given)
    labeled = held is not None and not any(row.texts for row in held)
    if held is not None and labeled:
        watched |= watched_sets([f"{HELD}={eval_data}"], given)
    loaded, processor = common.load(model, Precision.float32, "cpu", False, trust_remote_code)
    if train is Part.lora:
        from ..training.adapters import add_lora

        loaded = add_lora(loaded, lora_rank)
    import torch

    from ..training.arguments import CLIPTrainingArguments
    from ..training.trainer import CLIPTrainer

    rate = lr if lr is not None else 2e-4 if train is Part.lora else 1e-5
    strategy: dict[str, Any] = {"save_strategy": "epoch"}
    if save_steps is not None:
        strategy = {"save_strategy": "steps", "save_steps": save_steps, "eval_steps": save_steps}
    if held is not None or watched:
        strategy["eval_strategy"] = strategy["save_strategy"]
    if held is not None:
        strategy["load_best_model_at_end"] = True
        strategy["metric_for_best_model"] = f"eval_{HELD}_acc1" if labeled else "eval_mean_recall@1"
        strategy["greater_is_better"] = True
    readers = min(8, (os.cpu_count() or 1) - 1) if workers is None else workers
    arguments = CLIPTrainingArguments(
        str(output),
        learning_rate=rate,
        num_train_epochs=epochs,
        per_device_train_batch_size=min(batch_size, len(dataset)),
        per_device_eval_batch_size=min(batch_size, 64),
        mini_batch_size=mini_batch_size,
        train="all" if train is Part.lora else train.value,
        bf16=bf16,
        seed=seed,
        dataloader_num_workers=readers,
        dataloader_persistent_workers=readers > 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        # without it, processes on CPUs would each train a model of their own
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=0.02,  # of all steps
        save_total_limit=2,
        report_to="none",
        **strategy,
    )
    trainer = CLIPTrainer(
        loaded,
        processor,
        arguments,
        train_dataset=dataset,
        eval_dataset=None if held is None or labeled else PairDataset(held, templates=given, seed=seed),
        watch=watched,
        strict=strict,
    )
    try:
        train_and_report(trainer, output, model, data, resume, measured=bool(held is not None or watched))
    except KeyboardInterrupt:
        from ..training.checkpoints import complete_checkpoints

        kept = complete_checkpoints(output)
        left = f"add --resume to go on from {kept[-1]}" if kept else "there is no checkpoint yet, start again"
        say(f"stopped: {left}", err=True)
        raise typer.Exit(STOPPED) from None


def watched_sets(arguments: list[str], templates: list[str] | None) -> dict[str, "ZeroShotSet"]:
    """Read the watched sets, given as NAME=DATA or as a path, whose last part is then the name."""
    from ..evaluation.tasks import ZeroShotSet

    sets: dict[str, ZeroShotSet] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        name = name or Path(path).stem
        if name in sets:
            raise CommandError(f"two watched sets are called {name}: give them names, as in {name}2={path}")
        sets[name] = ZeroShotSet(path, templates)
    return sets


def train_and_report(trainer: "CLIPTrainer", output: Path, model: str, data: str, resume: bool, measured: bool) -> None:
    """Evaluate, train, evaluate again, and write the model and its report."""
    from ..training.checkpoints import check_same_run, last_checkpoint, remove_checkpoints
    from ..training.report import changes_table, kept, read_report, write_card, write_report

    main = trainer.is_world_process_zero()
    if resume:
        check_same_run(last_checkpoint(output), trainer.train_dataset, trainer.args)
    elif main:
        remove_checkpoints(output)
    report = read_report(output) if resume else {}
    if measured and "before" not in report:
        report["before"] = kept(trainer.evaluate())
    report["settings"] = settings_of_training(trainer)
    if main:
        output.mkdir(parents=True, exist_ok=True)
        write_report(output, report)
    trainer.train(resume_from_checkpoint=resume or None)
    if measured:
        report["after"] = kept(trainer.evaluate())
    trainer.save_model()
    if not main:
        return
    write_report(output, report)
    write_card(output, model, Path(data).name, report)
    draw_training(trainer, report.get("before", {}), output / "training.png")
    if measured:
        for line in changes_table(report["before"], report["after"]).split("\n"):
            say(line)
    say(f"done: {output}, {trainer.state.global_step:,} steps")


def settings_of_training(trainer: "CLIPTrainer") -> dict[str, Any]:
    """Return the settings that the model card shows."""
    arguments = trainer.args
    names = ("train", "learning_rate", "weight_decay", "num_train_epochs", "bf16", "freeze_batch_norm", "seed")
    return {
        **{name: getattr(arguments, name) for name in names},
        "batch_size": arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps,
        "pairs": len(trainer.train_dataset),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }


def draw_training(trainer: "CLIPTrainer", before: dict[str, float], output: Path) -> None:
    """Draw the curves of loss and metrics, if matplotlib is installed."""
    from importlib.util import find_spec

    from ..utils.packages import install_command

    if find_spec("matplotlib") is None:
        say(f"no training.png: {install_command('plot')} to draw the curves", err=True)
        return
    from ..plots.curves import draw_curves

    start = {"step": 0, **{f"eval_{name}": value for name, value in before.items()}}
    draw_curves([start, *trainer.state.log_history], output)
