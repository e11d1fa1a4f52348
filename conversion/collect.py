"""Gather the published models on the Hub: a Space that runs one of them, and a collection of all."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi

from hf_clip.openai.published import CHECKPOINTS
from model_cards.render import load_data

from .publish import CARD, PublishError, Upload, check_repo, explained, publish

SPACE = Path(__file__).parents[1] / "examples" / "space"
SPACE_MODEL = CHECKPOINTS["ViT-B/32"]
MODELS = re.compile(r"^models:\n(  - .+\n)+", re.MULTILINE)
TITLE = "OpenAI's CLIP, bit for bit"
DESCRIPTION = "The nine checkpoints as transformers models, equal to the originals bit for bit."


@dataclass(frozen=True)
class Item:
    """One entry of the collection; `id` is a repository's or a paper's."""

    id: str
    kind: Literal["model", "space", "paper"]
    note: str


def collect(
    organization: str,
    space: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Publish the app as a Space of the name `space`, if given, and complete the collection. Raises PublishError.

    A dry run only reports.
    """
    check_repo(f"{organization}/{space or 'clip'}")
    if space:
        publish([space_upload(organization, space)], None, private, dry_run, report)
        model = f"{organization}/{SPACE_MODEL.repo_name}"
        report(f"variable MODEL of the Space: {model}")
        if not dry_run:
            with explained(f"the Space's variable MODEL was not set to {model}"):
                HfApi(token=True).add_space_variable(f"{organization}/{space}", "MODEL", model)
    items = list(collection_items(organization, space))
    report(f"collection {TITLE!r} of {organization} ({'private' if private else 'public'} if new):")
    for item in items:
        report(f"{item.kind:>8}  {item.id}: {item.note}")
    if dry_run:
        report("dry run, nothing sent")
    else:
        report(f"collected: {_send(organization, items, private)}")


def space_upload(organization: str, space: str) -> Upload:
    """Return the files of the Space, whose card names the published models, so that their pages show it."""
    card = (SPACE / CARD).read_text(encoding="utf-8")
    models = "".join(f"  - {organization}/{checkpoint.repo_name}\n" for checkpoint in CHECKPOINTS.values())
    files: dict[str, Path | bytes] = {path.name: path for path in sorted(SPACE.glob("[!_.]*.*"))}
    files[CARD] = MODELS.sub(f"models:\n{models}", card).encode()
    return Upload(SPACE, f"{organization}/{space}", files, "Add the app", kind="space")


def collection_items(organization: str, space: str | None) -> Iterator[Item]:
    """Yield the Space, the nine models with their sizes, and the paper."""
    data = load_data()
    if space:
        yield Item(f"{organization}/{space}", "space", "label an image with your own words, in the browser")
    for name, checkpoint in CHECKPOINTS.items():
        row = data["checkpoints"][name]
        note = (
            f"{name}: {row['parameters'] / 1e6:.0f} M parameters, {row['resolution']} pixels, "
            f"{100 * row['zero_shot']['ImageNet 1k']:.1f} % on ImageNet"
        )
        yield Item(f"{organization}/{checkpoint.repo_name}", "model", note)
    paper = data["sources"]["paper"]
    yield Item(paper["url"].rpartition("/")[2], "paper", paper["name"])


def _send(organization: str, items: list[Item], private: bool) -> str:
    api = HfApi(token=True)
    with explained(f"the collection {TITLE!r} was not made"):
        collection = api.create_collection(
            TITLE, namespace=organization, description=DESCRIPTION, private=private, exists_ok=True
        )
    if private and not collection.private:
        raise PublishError(
            f"{collection.slug} exists and is public: make it private on the Hub, or leave out --private"
        )
    present = {(item.item_type, item.item_id) for item in collection.items}
    for item in items:
        if (item.kind, item.id) not in present:
            with explained(f"the {item.kind} {item.id} was not added to {collection.slug}"):
                api.add_collection_item(collection.slug, item.id, item.kind, note=item.note, exists_ok=True)
    return collection.url


__all__ = ["Item", "collect", "collection_items", "space_upload"]
