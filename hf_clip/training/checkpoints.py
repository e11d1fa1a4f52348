"""Checkpoints of a training run: find the complete ones, write them whole, and record their training data."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..data.rows import DataError

STATE = "trainer_state.json"  # the trainer writes it last: where it is readable, the checkpoint is complete

# the optimizer's state in a checkpoint overrides them, so other values would be ignored without a word
SAME_SETTINGS = ("learning_rate", "weight_decay", "lr_scheduler_type", "seed", "exif")


class CheckpointFileError(OSError):
    """A checkpoint cannot be written or found."""


def last_checkpoint(output: str | Path) -> str:
    """Return the latest complete checkpoint of an output folder.

    Raises:
        CheckpointFileError: The folder has no complete checkpoint.
    """
    found = complete_checkpoints(output)
    if not found:
        raise CheckpointFileError(f"{output} has no complete checkpoint to resume from: start without it")
    return str(found[-1])


def complete_checkpoints(output: str | Path) -> list[Path]:
    """List the complete checkpoints of an output folder, by step."""
    folders = {
        int(match[1]): path
        for path in Path(output).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and _state(path) is not None
    }
    return [folders[step] for step in sorted(folders)]


def _state(checkpoint: str | Path) -> dict[str, Any] | None:
    try:
        return json.loads(Path(checkpoint, STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def remove_checkpoints(output: str | Path) -> None:
    """Remove the checkpoints of an earlier run, so that a new one never resumes from them."""
    for path in Path(output).glob("checkpoint-*"):
        shutil.rmtree(path)


@contextmanager
def checked_writing(folder: str | Path, output: str | Path) -> Iterator[None]:
    """Remove a checkpoint that fails to be written, and name the one to resume from in the error."""
    folder, output = Path(folder), Path(output)
    try:
        yield
    except Exception as error:  # safetensors and torch have errors of their own for a full disk
        free = shutil.disk_usage(output).free / 2**20
        if folder != output and _state(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        kept = complete_checkpoints(output)
        left = f"resume from {kept[-1]}" if kept else "train again, as there is no checkpoint"
        raise CheckpointFileError(
            f"{folder} cannot be written ({error}; {free:,.0f} MiB are free): make room, then {left}"
        ) from error


@contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """Create a temporary folder whose files move to `folder` when the block ends; after an error none of them stay."""
    folder = Path(folder)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as work:
        yield Path(work)
        for path in Path(work).iterdir():
            path.replace(folder / path.name)


class DataIdentity(TrainerCallback, ExportableState):
    """Record the training data and the settings of the optimizer in each checkpoint."""

    def __init__(self, data: Any, args: TrainingArguments):
        self.data, self.args = data, args
        self._fingerprint: str | None = None

    def state(self) -> dict[str, Any]:
        """Return the entry of trainer_state.json."""
        if self._fingerprint is None:
            self._fingerprint = training_fingerprint(self.data)
        return {"args": {}, "attributes": {"fingerprint": self._fingerprint, **_settings(self.args)}}


def _settings(args: TrainingArguments) -> dict[str, Any]:
    return {name: getattr(args, name) for name in SAME_SETTINGS}


def training_fingerprint(data: Any) -> str | None:
    """Return the fingerprint of a data set, None if it has none."""
    return data.fingerprint() if hasattr(data, "fingerprint") else None


def check_same_run(checkpoint: str | Path, data: Any, args: TrainingArguments) -> None:
    """Check that a checkpoint was trained on the same data with the same settings.

    Args:
        checkpoint: The folder of the checkpoint.
        data: The training data.
        args: The settings of the training that is to be resumed.

    Raises:
        DataError: The data is another.
        ValueError: A setting is another.
    """
    known = ((_state(checkpoint) or {}).get("stateful_callbacks") or {}).get("DataIdentity") or {}
    trained = known.get("attributes", {})
    if trained.get("fingerprint") is not None and trained["fingerprint"] != training_fingerprint(data):
        raise DataError(f"{checkpoint} was trained on other data: give the same data set, or start without resuming")
    for name, value in _settings(args).items():
        if name in trained and trained[name] != value:
            raise ValueError(
                f"{checkpoint} was trained with {name} {trained[name]}, not {value}: give the same, or start without "
                "resuming"
            )


__all__ = [
    "CheckpointFileError",
    "DataIdentity",
    "check_same_run",
    "checked_writing",
    "complete_checkpoints",
    "last_checkpoint",
    "remove_checkpoints",
    "whole_files",
]
