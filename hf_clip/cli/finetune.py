"""`hf-clip finetune`."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..utils.packages import require
from ..utils.text import first_line, say
from . import common
from .blocks import Loading
from .classify import read_templates
from .common import STOPPED, CommandError
from .options import (
    ADVANCED,
    READ_AT_A_TIME,
    AllowScheme,
    ExifMode,
    ExifUse,
    Force,
    License,
    ModelId,
    Resume,
    Strict,
    Trust,
    Watch,
)
from .sources import check_source

if TYPE_CHECKING:
    from ..evaluation.tasks import ZeroShotSet
    from ..training.datasets import PairDataset
    from ..training.trainer import CLIPTrainer

# Defaults go by steps: three epochs of 100 images are three steps. On 1,400 digits, three epochs took the shapes pair
# from 0.10 to 0.34.
EPOCHS, MIN_STEPS, MAX_EPOCHS = 3, 300, 100
# that of the loss over classes is WiSE-FT's
RATES = {"contrastive": 1e-5, "siglip": 1e-5, "classes": 3e-5, "lora": 2e-4}
EVALUATIONS = 10  # of a training whose epochs are many
MAX_CLASSES = 1000  # whose prompts are encoded in each step
CLASSIFIER_FILE = "classifier.safetensors"  # the classes that were trained, for classify, calibrate, serve and export
HELD = "data"  # the name of --eval in metrics, if it has labels


class Part(str, Enum):
    """Parts of the model that can be trained."""

    all = "all"
    image = "image"
    text = "text"
    projections = "projections"
    lora = "lora"


class Loss(str, Enum):
    """Losses of fine-tuning."""

    auto = "auto"
    contrastive = "contrastive"
    classes = "classes"
    siglip = "siglip"


class Balance(str, Enum):
    """Ways to balance rare classes."""

    none = "none"
    weights = "weights"
    sampler = "sampler"


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
        list[str] | None,
        typer.Option("--eval", metavar="DATA", help="Other data, to evaluate on; the best checkpoint is kept."),
    ] = None,
    watch: Watch = None,
    templates: Annotated[
        list[str] | None,
        typer.Option("--templates", "-t", metavar="TEXT|FILE", help="Prompts with {} for the label."),
    ] = None,
    train: Annotated[Part, typer.Option(help="The part to train; `lora` needs peft.")] = Part.all,
    loss: Annotated[
        Loss,
        typer.Option(help="What is compared: pairs, or images with the prompts of all classes (auto: as data allow)."),
    ] = Loss.auto,
    epochs: Annotated[
        float | None, typer.Option(help=f"Passes over the data (default: 3, or {MIN_STEPS} steps if that is more).")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate (default: 1e-5, for classes 3e-5, for LoRA 2e-4).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs per step and process.")] = 128,
    mini_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pairs to encode at a time: less memory, the same gradients.", rich_help_panel=ADVANCED
        ),
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="The rank of LoRA adapters (default: 8).", rich_help_panel=ADVANCED)
    ] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option(help="Scale of LoRA adapters, over the rank (default: the rank).", rich_help_panel=ADVANCED),
    ] = None,
    lora_dropout: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Dropout before LoRA adapters (default: 0).", rich_help_panel=ADVANCED),
    ] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Layers with LoRA adapters (default: q_proj,v_proj).", rich_help_panel=ADVANCED
        ),
    ] = None,
    balance: Annotated[
        Balance,
        typer.Option(
            help="Balance rare classes: weigh them in the loss over classes, or draw each equally often.",
            rich_help_panel=ADVANCED,
        ),
    ] = Balance.none,
    label_smoothing: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the target of the loss over classes for all of them.", rich_help_panel=ADVANCED
        ),
    ] = 0.0,
    weight_decay: Annotated[
        float, typer.Option(min=0, help="Weight decay of weight matrices.", rich_help_panel=ADVANCED)
    ] = 0.1,
    last_layers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train this many last layers of a tower only (stages of a ResNet).", rich_help_panel=ADVANCED
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop after this many evaluations without a better one. Needs --eval.", rich_help_panel=ADVANCED
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Less memory, a third more time.", rich_help_panel=ADVANCED),
    ] = False,
    report_to: Annotated[
        str,
        typer.Option(metavar="NAME", help="Tracker of the metrics, e.g. tensorboard, wandb.", rich_help_panel=ADVANCED),
    ] = "none",
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of images in tables.", rich_help_panel=ADVANCED)
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of captions in tables.", rich_help_panel=ADVANCED)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of labels in tables.", rich_help_panel=ADVANCED)
    ] = None,
    allow_scheme: AllowScheme = None,
    exif: ExifMode = ExifUse.ignore,
    bf16: Annotated[
        bool,
        typer.Option("--bf16", help="Compute in bfloat16; weights stay in float32.", rich_help_panel=ADVANCED),
    ] = False,
    save_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps between checkpoints and evaluations (default: an epoch).", rich_help_panel=ADVANCED
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the order of the data and of drawn captions.", rich_help_panel=ADVANCED)
    ] = 42,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Upload the result to this repository of the Hub.", rich_help_panel=ADVANCED),
    ] = None,
    license_id: License = None,
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
    if eval_data and len(eval_data) > 1:
        raise CommandError(f"--eval is given {len(eval_data)} times: choose one, and --watch the others")
    check_positive("--epochs", epochs)
    check_positive("--lr", lr)
    check_positive("--lora-alpha", lora_alpha)
    adapter: dict[str, Any] = {"rank": lora_rank, "alpha": lora_alpha, "dropout": lora_dropout}
    adapter |= {"targets": None if lora_targets is None else lora_targets.replace(" ", "").split(",")}
    adapter = {name: value for name, value in adapter.items() if value is not None}
    if adapter and train is not Part.lora:
        raise CommandError(f"--lora-{next(iter(adapter))} is for --train lora: give both, or neither")
    if patience is not None and not eval_data:
        raise CommandError("--patience needs --eval, whose best result it waits for")
    # what the Hub refuses is better known before the training
    repository = None if push_to_hub is None or int(os.environ.get("RANK", "0")) else new_repository(push_to_hub)
    from ..data.read import read_rows
    from ..training.datasets import PairDataset

    given = read_templates(templates) if templates else None
    columns = {"image_column": image_column, "text_column": text_column, "label_column": label_column}
    schemes = {"allow_schemes": allow_scheme or ()}
    reading = {name: column for name, column in columns.items() if column is not None} | schemes
    dataset = PairDataset(read_rows(data, **reading), templates=given, seed=seed)
    if given and not dataset.rows.labels:
        raise CommandError(f"--templates are prompts for labels, but {data} has captions: leave them out")
    held = read_rows(eval_data[0], **reading) if eval_data else None
    watched = watched_sets(watch or [], given, schemes, exif)
    labeled = held is not None and not any(row.texts for row in held)
    if held is not None and labeled:
        watched |= {HELD: evaluated(held, given, exif)}
    loaded, processor = common.load_model(model, Loading(device="cpu", trust_remote_code=trust_remote_code))
    if train is Part.lora:
        from transformers import set_seed

        from ..training.adapters import add_lora

        set_seed(seed)  # adapters are drawn
        loaded = add_lora(loaded, **adapter)
    import torch

    from ..training.arguments import CLIPTrainingArguments
    from ..training.trainer import CLIPTrainer

    compared = chosen_loss(loss, dataset, mini_batch_size)
    rate = lr if lr is not None else RATES["lora" if train is Part.lora else compared]
    if resume and lr is None:
        from ..training.report import read_report

        rate = read_report(output).get("settings", {}).get("learning_rate", rate)
    batch = min(batch_size, len(dataset))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    length = default_epochs(len(dataset) // (batch * processes) or 1) if epochs is None else epochs
    strategy: dict[str, Any] = {"save_strategy": "epoch"}
    if save_steps is None and epochs is None:  # many epochs of few steps
        save_steps = math.ceil(length * (len(dataset) // (batch * processes) or 1) / EVALUATIONS)
    if save_steps is not None:
        strategy = {"save_strategy": "steps", "save_steps": save_steps, "eval_steps": save_steps}
    if held is not None or watched:
        strategy["eval_strategy"] = strategy["save_strategy"]
    if held is not None:
        strategy["load_best_model_at_end"] = True
        measure = "mean_average_precision" if held.is_multilabel else "acc1"
        strategy["metric_for_best_model"] = f"eval_{HELD}_{measure}" if labeled else "eval_mean_recall@1"
        strategy["greater_is_better"] = True
    readers = min(8, (os.cpu_count() or 1) - 1) if workers is None else workers
    # transformers 5.24 renamed it
    renamed = hasattr(CLIPTrainingArguments, "activation_checkpointing")
    name = "activation_checkpointing" if renamed else "gradient_checkpointing"
    checkpointing: dict[str, Any] = {name: gradient_checkpointing}
    arguments = CLIPTrainingArguments(
        str(output),
        learning_rate=rate,
        weight_decay=weight_decay,
        num_train_epochs=length,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=min(batch_size, 64),
        mini_batch_size=mini_batch_size,
        loss=compared,
        balance=balance.value,
        label_smoothing_factor=label_smoothing,
        train="all" if train is Part.lora else train.value,
        train_last_layers=last_layers,
        **checkpointing,
        bf16=bf16,
        seed=seed,
        exif=exif.value,
        dataloader_num_workers=readers,
        dataloader_persistent_workers=readers > 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        # without it, processes on CPUs would each train a model of their own
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=0.02,  # of all steps
        save_total_limit=1,  # and the best, with --eval: a checkpoint of ViT-B/32 takes 1.8 GB
        report_to=report_to,
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
        callbacks=early_stopping(patience),
    )
    sets = {name: each.rows for name, each in watched.items()} | ({} if held is None else {HELD: held})
    if trainer.is_world_process_zero():
        say(schedule(trainer))
    try:
        train_and_report(trainer, output, model, data, resume, sets, license_id)
    except KeyboardInterrupt:
        from ..training.checkpoints import complete_checkpoints

        kept = complete_checkpoints(output)
        left = f"add --resume to go on from {kept[-1]}" if kept else "there is no checkpoint yet, start again"
        say(f"stopped: {left}", err=True)
        raise typer.Exit(STOPPED) from None
    if repository is not None:
        upload(output, repository)
        say(f"uploaded: {repository}")


def new_repository(name: str) -> Any:
    """Make a repository on the Hub, if it is not there, and return its address."""
    from huggingface_hub import HfApi

    with hiding_token(name):
        return HfApi().create_repo(name, exist_ok=True)


def upload(folder: Path, repository: Any) -> None:
    """Upload the files of a folder, checkpoints left out, to a `new_repository`."""
    from huggingface_hub import HfApi

    name, left_out = repository.repo_id, ["checkpoint-*/**", "runs/**"]
    with hiding_token(name):
        HfApi().upload_folder(folder_path=folder, repo_id=name, ignore_patterns=left_out)


@contextmanager
def hiding_token(repository: str) -> Iterator[None]:
    """Turn a refusal of the Hub into CommandError, without the token that servers may repeat."""
    from huggingface_hub import get_token

    try:
        yield
    except (OSError, ValueError) as error:
        sentence = first_line(error).replace(get_token() or "\0", "[token]")
        raise CommandError(f"the Hub does not take {repository}: {sentence}") from None


def check_positive(option: str, value: float | None) -> None:
    """Raise CommandError unless a number is positive or absent."""
    if value is not None and not value > 0:
        raise CommandError(f"{option} is {value:g}, which trains nothing: give a positive number")


def default_epochs(steps: int) -> int:
    """Return the epochs of `steps` steps each that train by default: few long ones, or many short ones."""
    return max(EPOCHS, min(math.ceil(MIN_STEPS / steps), MAX_EPOCHS))


def chosen_loss(loss: Loss, dataset: "PairDataset", mini_batch_size: int | None) -> str:
    """Return the loss for the data: with labels that over classes, which learns more and forgets less."""
    if loss is not Loss.auto:
        return loss.value
    if dataset.rows.is_multilabel:
        return "classes"
    labeled = all(row.label is not None and not row.texts for row in dataset.rows)
    few = 2 <= len(dataset.rows.labels) <= MAX_CLASSES
    return "classes" if labeled and few and mini_batch_size is None else "contrastive"


def early_stopping(patience: int | None) -> list[Any]:
    """Return the callback that stops after `patience` evaluations without a better one."""
    if patience is None:
        return []
    from transformers import EarlyStoppingCallback

    return [EarlyStoppingCallback(patience)]


def schedule(trainer: "CLIPTrainer") -> str:
    """Return a line on the length and the rates of a training."""
    arguments = trainer.args
    batch = arguments.train_batch_size * arguments.world_size
    steps = max(1, int(len(trainer.train_dataset) // batch * arguments.num_train_epochs))
    return (
        f"{steps:,} steps of {batch} images ({arguments.num_train_epochs:g} epochs), {arguments.loss} loss; the rate "
        f"rises to {arguments.learning_rate:g} in {arguments.get_warmup_steps(steps)} steps and falls as a cosine"
    )


def evaluated(rows: Any, templates: list[str] | None, exif: ExifUse) -> "ZeroShotSet":
    """Return the evaluator of labeled images."""
    from ..evaluation.tasks import ZeroShotSet

    return ZeroShotSet(rows, templates, exif=exif.value)


def watched_sets(
    arguments: list[str], templates: list[str] | None, schemes: dict[str, Any], exif: ExifUse
) -> dict[str, "ZeroShotSet"]:
    """Read the watched sets, given as NAME=DATA or as a path, whose last part is then the name."""
    from ..data.read import read_rows

    sets: dict[str, ZeroShotSet] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        name = name or Path(path).stem
        if name in sets:
            raise CommandError(f"two watched sets are called {name}: give them names, as in {name}2={path}")
        sets[name] = evaluated(read_rows(path, **schemes), templates, exif)
    return sets


def train_and_report(
    trainer: "CLIPTrainer",
    output: Path,
    model: str,
    data: str,
    resume: bool,
    sets: dict[str, Any],
    license_id: str | None = None,
) -> None:
    """Evaluate on the rows of `sets`, train, evaluate again, and write the model and its report."""
    from ..evaluation.results import size_of_rows
    from ..training.checkpoints import check_same_run, last_checkpoint, remove_checkpoints
    from ..training.report import changes_table, kept, read_report, write_card, write_report

    main = trainer.is_world_process_zero()
    if resume:
        check_same_run(last_checkpoint(output), trainer.train_dataset, trainer.args)
    elif main:
        remove_checkpoints(output)
    report = read_report(output) if resume else {}
    if sets and "before" not in report:
        report["before"] = kept(trainer.evaluate())
    report["settings"] = settings_of_training(trainer)
    report["data"] = {name: size_of_rows(rows) for name, rows in sets.items()}
    if main:
        output.mkdir(parents=True, exist_ok=True)
        write_report(output, report)
    trainer.train(resume_from_checkpoint=resume or None)
    if sets:
        report["after"] = kept(trainer.evaluate())
    trainer.save_model()
    if not main:
        return
    write_report(output, report)
    write_card(output, model, Path(data).name, report, license_id)
    if trainer.args.loss == "classes" and not hasattr(trainer.model, "peft_config"):
        save_classifier(trainer, output / CLASSIFIER_FILE)
    draw_training(trainer, report.get("before", {}), output / "training.png")
    if sets:
        for line in changes_table(report).split("\n"):
            say(line)
    say(f"done: {output}, {trainer.state.global_step:,} steps")
    say_next_steps(output, model, data)


def save_classifier(trainer: "CLIPTrainer", path: Path) -> None:
    """Save the classes that were trained, with their templates, as a classifier."""
    from ..zero_shot.classifier import ZeroShotClassifier

    data = trainer.train_dataset
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    ZeroShotClassifier(model, trainer.processing_class, data.rows.labels, data.templates).save(path)


def say_next_steps(output: Path, model: str, data: str) -> None:
    """Print which checkpoints are kept, and the commands that use the result."""
    from ..training.checkpoints import complete_checkpoints

    kept = complete_checkpoints(output)
    size = sum(file.stat().st_size for path in kept for file in path.rglob("*") if file.is_file()) / 2**20
    if kept:
        names = ", ".join(path.name for path in kept)
        say(f"kept for --resume: {names} ({size:,.0f} MiB); remove them once you are done")
    if (output / "adapter_config.json").is_file():
        say(f"next: hf-clip merge {model} {output} --output MERGED")
        return
    say(f"next: hf-clip evaluate zero-shot {data} --model {model} --model {output}")
    if (output / CLASSIFIER_FILE).is_file():
        say(f"      hf-clip classify IMAGES --labels {output / CLASSIFIER_FILE} --model {output}")
    say(f"      hf-clip merge {model} {output} --output MERGED --alpha 0.5, if it forgot too much")
    say(f"      hf-clip export {output} --output EXPORTED, to run it elsewhere")


def settings_of_training(trainer: "CLIPTrainer") -> dict[str, Any]:
    """Return the settings that the model card shows."""
    arguments = trainer.args
    names = ("loss", "learning_rate", "weight_decay", "num_train_epochs", "bf16", "freeze_batch_norm", "seed", "exif")
    lora = hasattr(trainer.model, "peft_config")
    return {
        "train": "lora" if lora else arguments.train,
        **(settings_of_adapter(trainer.model) if lora else {}),
        **{name: getattr(arguments, name) for name in names},
        "batch_size": arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps,
        "pairs": len(trainer.train_dataset),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }


def settings_of_adapter(model: Any) -> dict[str, Any]:
    """Return the settings of a model's LoRA adapter."""
    known = model.peft_config["default"]
    return {
        "lora_rank": known.r,
        "lora_alpha": known.lora_alpha,
        "lora_dropout": known.lora_dropout,
        "lora_targets": str(known.target_modules),
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
