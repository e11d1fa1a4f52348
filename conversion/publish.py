"""Publish folders on the Hugging Face Hub, converted and verified ones first of all, each in one commit."""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # httpx's or, from huggingface_hub 2, httpx2's
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hf_clip import __version__
from hf_clip.openai.errors import CheckpointError
from hf_clip.openai.published import CHECKPOINTS, published
from hf_clip.parity.verify import PARITY_FILE, check_verified

from .notebook import NOTEBOOK, card_notebook

CARD = "README.md"
ENDPOINT = {path.name: path for path in sorted((Path(__file__).parent / "endpoint").glob("[!_]*.*"))}


class PublishError(ValueError):
    """Raised if a folder cannot be published or the Hub refuses it. The message never holds the token."""


@dataclass(frozen=True)
class Upload:
    """Files for a repository, by their paths in it, to be sent in one commit.

    `sha256` is the original's. `tag` names the first commit with this version's code, on main: cards pin it. `kind` is
    model or space.
    """

    directory: Path
    repo: str
    files: dict[str, Path | bytes]
    message: str
    sha256: str | None = None
    tag: str | None = None
    kind: str = "model"


def prepare(directory: Path, repo: str, report: Callable[[str], None] = print, handler: bool = False) -> Upload:
    """Check a folder without the network. Raises PublishError, and CheckpointError if it is not verified.

    With `handler`, the handler.py and requirements.txt of Inference Endpoints go with it.
    """
    check_repo(repo)
    if not directory.is_dir():
        raise PublishError(f"there is no folder {directory}")
    report(f"checking {directory}")
    parity = check_verified(directory)
    files: dict[str, Path | bytes] = {path: directory / path for path in [*parity["files"], PARITY_FILE]}
    original = parity["original"]
    if (directory / CARD).is_file():
        card = (directory / CARD).read_text(encoding="utf-8")
        if name := published(original["sha256"]):  # its examples get the name of the repository that it goes to
            placeholder = rf'"[\w.-]+/{re.escape(CHECKPOINTS[name].repo_name)}"'
            card = re.sub(placeholder, f'"{repo}"', card)
        files[CARD] = card.encode()
        if notebook := card_notebook(card):
            files[NOTEBOOK] = notebook
    files = dict(sorted(files.items())) | (ENDPOINT if handler else {})
    message = f"Convert {original['name']} (SHA-256 {original['sha256']})"
    return Upload(directory, repo, files, message, original["sha256"], f"v{__version__}")


def prepare_all(
    organization: str, root: Path, report: Callable[[str], None] = print, handler: bool = False
) -> list[Upload]:
    """Prepare the nine published checkpoints in `root`; one PublishError lists the problems of all."""
    check_repo(f"{organization}/clip")
    uploads, problems = [], []
    for checkpoint in CHECKPOINTS.values():
        directory = root / checkpoint.repo_name
        try:
            uploads.append(prepare(directory, f"{organization}/{checkpoint.repo_name}", report, handler))
            if uploads[-1].sha256 != checkpoint.sha256:
                raise PublishError(f"{directory} was not converted from the published {checkpoint.name}")
        except (CheckpointError, PublishError) as error:
            problems.append(str(error))
    if problems:
        raise PublishError("; ".join(["nothing is uploaded until all nine folders are in order", *problems]))
    return uploads


def publish(
    uploads: list[Upload],
    revision: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Upload each folder, to the branch `revision` if given. A dry run only reports. Raises PublishError."""
    for upload in uploads:
        if CARD not in upload.files:
            report(f"warning: {upload.directory} has no {CARD}, so {upload.repo} gets no model card from it")
        visibility = "private" if private else "public"
        report(f"{upload.directory} to {upload.repo} ({visibility} if new), branch {revision or 'main'}:")
        sizes = {path: _size(content) for path, content in upload.files.items()}
        for path, size in (sizes | {"in all": sum(sizes.values())}).items():
            report(f"{size:>15,}  {path}")
        if dry_run:
            tag = f", tag {upload.tag} if new" if upload.tag and not revision else ""
            report(f"dry run, nothing sent; the commit would be: {upload.message}{tag}")
        else:
            with explained(f"{upload.repo} was not published"):
                report(f"published: {_send(upload, revision, private)}")


def is_published(upload: Upload, revision: str | None = None) -> bool:
    """Return True if the Hub holds this card with its notebook, and this parity.json, which has the others' SHA-256."""
    with explained(f"{upload.repo} was not published"), tempfile.TemporaryDirectory() as folder:
        for path in {CARD, NOTEBOOK, PARITY_FILE} & upload.files.keys():
            try:
                found = HfApi(token=True).hf_hub_download(upload.repo, path, revision=revision, local_dir=folder)
            except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
                return False
            content = upload.files[path]
            if Path(found).read_bytes() != (content.read_bytes() if isinstance(content, Path) else content):
                return False
    return True


def check_repo(repo: str) -> None:
    """Raise PublishError unless `repo` is a valid ORG/NAME."""
    if repo.count("/") != 1:
        raise PublishError(f"{repo!r} is no repository id: it must look like ORG/NAME")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PublishError(str(error)) from error


def _send(upload: Upload, revision: str | None, private: bool) -> str:
    api, kind = HfApi(token=True), upload.kind
    sdk = "gradio" if kind == "space" else None
    url = api.create_repo(upload.repo, repo_type=kind, private=private or None, exist_ok=True, space_sdk=sdk)
    if private and not api.repo_info(upload.repo, repo_type=kind).private:
        raise PublishError(f"{upload.repo} exists and is public: make it private on the Hub, or leave out --private")
    if revision:
        api.create_branch(upload.repo, branch=revision, exist_ok=True)
    # upload_folder may split a folder into several commits
    additions = [CommitOperationAdd(path, content) for path, content in upload.files.items()]
    commit = api.create_commit(upload.repo, additions, commit_message=upload.message, repo_type=kind, revision=revision)
    if upload.tag and not revision:
        api.create_tag(upload.repo, tag=upload.tag, revision=commit.oid, exist_ok=True)
    return f"{url}/tree/{revision}" if revision else str(url)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


@contextmanager
def explained(failure: str) -> Iterator[None]:
    """Turn errors between here and the Hub into a PublishError of one sentence, `failure` and the reason."""
    try:
        yield
    except PublishError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        sentence = " ".join(f"{failure}: {_reason(error)}".split())
        token = get_token()
        # the cause may hold the request, and with it the token
        raise PublishError(sentence.replace(token, "[token]") if token else sentence) from None


def _reason(error: BaseException) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "you are not logged in to the Hub; run `hf auth login` or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        advice = {
            401: "the Hub does not know this token; run `hf auth login` or correct HF_TOKEN",
            403: "this token may not write there; use one with write access",
        }.get(status, "the Hub refused")
        return f"{advice} ({status}: {error.server_message or error.response.reason_phrase})"
    if isinstance(error, HTTPError):
        return f"the connection failed ({error}); run the command again, nothing that arrived is sent twice"
    if isinstance(error, json.JSONDecodeError):
        return "the server does not answer as a Hub does; check HF_ENDPOINT"
    if isinstance(error, RuntimeError) and error.__cause__:  # "Error while uploading ..."
        return _reason(error.__cause__)
    return str(error)
