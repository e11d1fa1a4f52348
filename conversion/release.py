"""Release published checkpoints: convert, verify, put the model card in, publish."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from hf_clip.openai.convert import convert
from hf_clip.openai.published import CHECKPOINTS, Checkpoint
from hf_clip.parity.verify import MARKED, NotVerifiedError, Verdict, check_verified, verify
from hf_clip.utils.files import replacing
from model_cards.render import FOLDER as CARDS

from .publish import CARD, PublishError, check_repo, is_published, prepare, publish

Report = Callable[[str], None]


def release(
    names: Sequence[str],
    organization: str,
    root: Path,
    golden_images: Path | None = None,
    cache_dir: Path | None = None,
    revision: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    report: Report = print,
) -> None:
    """Convert, verify and publish each checkpoint, skipping the steps that an earlier run has done.

    Raises PublishError, CheckpointError, DownloadError, and OSError for the files.
    """
    check_repo(f"{organization}/clip")
    for name in names:
        checkpoint = CHECKPOINTS[name]
        directory = root / checkpoint.repo_name
        build(checkpoint, directory, golden_images, cache_dir, report)
        upload = prepare(directory, f"{organization}/{checkpoint.repo_name}", report)
        if not dry_run and is_published(upload, revision):
            report(f"{upload.repo} is published already")
        else:
            publish([upload], revision, private, dry_run, report)


def build(
    checkpoint: Checkpoint, directory: Path, golden_images: Path | None, cache_dir: Path | None, report: Report
) -> None:
    """Make `directory` the checkpoint's verified folder with its current card."""
    if not (directory / "config.json").is_file():
        convert(checkpoint.name, directory, cache_dir=cache_dir, report=report)
    place_card(checkpoint, directory)
    if is_verified(checkpoint, directory):
        report(f"{directory} is verified already")
        return
    checks = verify(directory, checkpoint.name, golden_images=golden_images, cache_dir=cache_dir, report=report)
    if failed := [row.name for row in checks if row.verdict is Verdict.failed]:
        raise PublishError(
            f"{directory} failed its verification ({', '.join(failed)}): read its parity.json, then delete the folder "
            "to convert again"
        )


def is_verified(checkpoint: Checkpoint, directory: Path) -> bool:
    """Return True if the folder passed as it is now, against the published file."""
    try:
        return check_verified(directory)["original"]["sha256"] == checkpoint.sha256
    except NotVerifiedError:
        return False


def place_card(checkpoint: Checkpoint, directory: Path) -> None:
    """Copy the rendered card into the folder, keeping the summary of a verification."""
    source, target = CARDS / f"{checkpoint.repo_name}.md", directory / CARD
    if not target.is_file():
        shutil.copyfile(source, target)
        return
    summary = MARKED.search(target.read_text(encoding="utf-8"))
    card = source.read_text(encoding="utf-8")
    with replacing(target) as work:
        work.write_text(MARKED.sub(lambda _: summary[0], card) if summary else card, encoding="utf-8")
