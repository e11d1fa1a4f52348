import copy
from functools import cache
from pathlib import Path

import pytest
from support.commands import run
from support.originals import FAMILIES
from support.photos import make_photos

from hf_clip.cli import common
from hf_clip.embedding.files import FileStore


@pytest.fixture(autouse=True, scope="module")
def load_once():
    """Each model is read by the first run that asks for it: a tokenizer takes half a second. Runs get copies."""
    read = cache(common.load_model)

    def load(*arguments):
        model, processor = read(*arguments)
        return copy.deepcopy(model), processor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "load_model", load)
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture
def embed(repositories, photos, tmp_path, monkeypatch):
    """Run `embed` in batches of 2; gives its exit status and the images that went through the model."""
    append, embedded = FileStore.append, []

    def record(store, batch):
        append(store, batch)
        embedded.extend(path for path, error in zip(batch["path"], batch["error"], strict=True) if error is None)

    monkeypatch.setattr(FileStore, "append", record)

    def embed(*options, output="out.npy", family=FAMILIES[0]):
        embedded.clear()
        arguments = ["--output", tmp_path / output, "--model", repositories[family], "--batch-size", 2]
        return run("embed", photos, *arguments, *options), list(embedded)

    return embed
