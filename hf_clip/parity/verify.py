"""Verify that a converted folder equals its original, and record the result in parity.json and the model card."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from rich.table import Table
from transformers import AutoModel

from ..openai.download import cached_file, resolve_checkpoint
from ..openai.errors import CheckpointError, check_converted
from ..openai.published import CHECKPOINTS
from ..openai.to_openai import read_config
from ..utils.files import file_sha256, replacing
from ..utils.text import cell
from .checks import (
    Check,
    Verdict,
    check_code,
    check_config,
    check_image_processor,
    check_outputs,
    check_tensors,
    check_tokenizer,
    skipped,
)
from .golden import check_golden
from .reference import Reference, read_reference

FORMAT = 1
PARITY_FILE = "parity.json"
OUTPUTS = ("image features", "text features", "logits")
PACKAGES = ("hf_clip", "torch", "torchvision", "transformers", "Pillow")
COLORS = {Verdict.passed: "green", Verdict.failed: "bold red", Verdict.skipped: "yellow"}
MARKED = re.compile("(<!-- parity:start -->).*?(<!-- parity:end -->)", re.DOTALL)


class NotVerifiedError(CheckpointError):
    """Raised for a folder that was never verified, failed, or changed since."""


def verify(
    directory: Path,
    original: str | None = None,
    trust_original: bool = False,
    golden_images: Path | None = None,
    cache_dir: Path | None = None,
    report: Callable[[str], None] = print,
) -> list[Check]:
    """Compare a converted folder with its original, and record the result in its parity.json and README.md.

    `original` is one of the nine names or a file; without it, the original is the one that an earlier parity.json
    names if it is in the cache, else what that parity.json recorded of it. The graph in an original is run, which runs
    code of the file, only for the nine published files or with `trust_original`. Raises CheckpointError,
    DownloadError, and OSError for the files.
    """
    check_converted(directory)
    if not os.access(directory, os.W_OK):
        raise PermissionError(f"{directory} cannot take a {PARITY_FILE}: no permission to write in it")
    reference = _find_original(directory, original, trust_original, cache_dir, report)
    report(f"verifying {directory}")
    steps = {
        "remote code": lambda: [check_code(directory)],
        "config": lambda: [check_config(directory, reference)],
        "tensors": lambda: [check_tensors(directory, reference)],
        "image processor": lambda: [check_image_processor(directory, reference)],
        "tokenizer": lambda: [check_tokenizer(directory, reference)],
        "model": lambda: _check_model(directory, reference, golden_images),
    }
    checks = []
    for name, step in tqdm(steps.items(), desc="checks", delay=2):
        try:
            checks += step()
        except Exception as error:  # whatever a broken folder raises is a failed check, not a crash
            reason = " ".join(str(error).split())
            checks.append(Check(name, Verdict.failed, f"{type(error).__name__}: {reason[:300]}"))
    _record(directory, reference, checks)
    return checks


def check_verified(directory: Path) -> dict[str, Any]:
    """Return the folder's parity.json; raise NotVerifiedError unless all checks passed and no file changed since."""
    parity = _read_parity(directory)
    if parity is None:
        raise NotVerifiedError(f"{directory} is not verified: run `hf-clip verify {directory}` first")
    failed = [row["name"] for row in parity["checks"] if row["verdict"] == Verdict.failed]
    if failed:
        raise NotVerifiedError(f"{directory} failed its verification: {', '.join(failed)}")
    recorded, present = parity["files"], _files(directory)
    changes = [
        ("changed", [name for name in recorded if name in present and recorded[name] != present[name]]),
        ("added", sorted(present.keys() - recorded.keys())),
        ("removed", sorted(recorded.keys() - present.keys())),
    ]
    if found := "; ".join(f"{what} {', '.join(names)}" for what, names in changes if names):
        raise NotVerifiedError(f"{directory} is not as it was verified ({found}): verify it again")
    return parity


def table(checks: list[Check]) -> Table:
    """Lay the checks out as a table of rich."""
    rows = Table("check", "verdict", "detail")
    for row in checks:
        rows.add_row(cell(row.name), cell(row.verdict.value, COLORS[row.verdict]), cell(row.detail))
    return rows


# --- the original -----------------------------------------------------------------------------------------------------


def _find_original(
    directory: Path, original: str | None, trusted: bool, cache_dir: Path | None, report: Callable[[str], None]
) -> Reference:
    if original is not None:
        path = resolve_checkpoint(original, cache_dir)
        name = original if original in CHECKPOINTS else path.name
        return read_reference(path, name, trusted, report, read_config(directory))
    parity = _read_parity(directory)
    if parity is None:
        raise CheckpointError(f"{directory} has no {PARITY_FILE} that names its original: pass --original")
    try:
        recorded = Reference.from_json(parity["original"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{directory / PARITY_FILE} does not record the original: pass --original") from error
    if recorded.name in CHECKPOINTS:
        path = cached_file(CHECKPOINTS[recorded.name], cache_dir)
        if path.is_file() and file_sha256(path) == recorded.sha256:
            return read_reference(path, recorded.name, trusted, report)
    report(f"comparing with what {PARITY_FILE} recorded of {recorded.name}")
    return recorded


def _check_model(directory: Path, reference: Reference, golden_images: Path | None) -> list[Check]:
    """Run the checks that need the model, which is loaded once."""
    checks = [skipped(name, reference.no_outputs) for name in OUTPUTS if name not in reference.outputs]
    if reference.outputs or reference.checkpoint:
        model = AutoModel.from_pretrained(directory, dtype=torch.float32, trust_remote_code=False).eval()
        if reference.outputs:
            checks = check_outputs(model, reference) + checks
        if reference.checkpoint:
            checks += check_golden(model, directory, reference.checkpoint, golden_images)
    return checks


# --- the record -------------------------------------------------------------------------------------------------------


def _record(directory: Path, reference: Reference, checks: list[Check]) -> None:
    versions = {package: version(package) for package in PACKAGES}
    parity = {
        "format": FORMAT,
        "versions": versions,
        "checks": [asdict(row) for row in checks],
        "files": _files(directory),
        "original": reference.to_json(),
    }
    readme = directory / "README.md"
    if readme.is_file():
        card = readme.read_text(encoding="utf-8")
        summary = _summary(reference, versions, checks)
        _write(readme, MARKED.sub(lambda marks: f"{marks[1]}\n{summary}\n{marks[2]}", card))
    _write(directory / PARITY_FILE, json.dumps(parity, indent=1) + "\n")


def _summary(reference: Reference, versions: dict[str, str], checks: list[Check]) -> str:
    """Render the checks as Markdown for the model card."""
    installed = ", ".join(f"{package} {number}" for package, number in versions.items())
    rows = [[row.name, row.verdict.value, row.detail.replace("|", "\\|")] for row in checks]
    lines = [f"| {' | '.join(cells)} |" for cells in [["check", "verdict", "detail"], ["---"] * 3, *rows]]
    return "\n".join([f"Original: {reference.name}, SHA-256 `{reference.sha256}`. Versions: {installed}.", "", *lines])


def _read_parity(directory: Path) -> dict[str, Any] | None:
    file = directory / PARITY_FILE
    if not file.is_file():
        return None
    try:
        parity = json.loads(file.read_text(encoding="utf-8"))
        if parity["format"] == FORMAT:
            return parity
    except (ValueError, KeyError, TypeError):
        pass
    raise NotVerifiedError(f"{file} was not written by this version of verify: run it again with --original")


def _files(directory: Path) -> dict[str, str]:
    """Return SHA-256 by path for every published file, without the two that a verification writes."""
    paths = {path.relative_to(directory): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): file_sha256(path)
        for name, path in paths.items()
        if not name.parts[0].startswith((".", "__")) and name.as_posix() not in ("README.md", PARITY_FILE)
    }


def _write(path: Path, text: str) -> None:
    with replacing(path) as work:
        work.write_text(text, encoding="utf-8")
