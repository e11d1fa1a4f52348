"""Outputs are closed before they are renamed, and leftovers before they are removed, as Windows demands."""

import sys

import numpy as np
import pytest
from support.open_files import forbid_open_files
from support.photos import load

from hf_clip import ImageIndex
from hf_clip.embedding.files import FileStore
from hf_clip.embedding.identity import store_settings
from hf_clip.embedding.stores import OUTPUT_SUFFIXES
from hf_clip.openai.convert import convert
from hf_clip.openai.to_openai import to_openai

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def _windows(monkeypatch):
    forbid_open_files(monkeypatch)


def write_embeddings(output, settings, keys):
    """Write drawn rows for `keys`, beside those that are there."""
    rows = np.random.default_rng(0).normal(size=(len(keys), settings["dim"])).astype("f4")
    with FileStore(output, settings, tolerance=1e-3) as store:
        batch = {"key": keys, "path": keys, "version": keys, "embedding": rows, "error": [None] * len(keys)}
        store.append(batch)
        store.finish(keys, {}, {})


def test_the_rule_holds(tmp_path):
    with (tmp_path / "file").open("w"), pytest.raises(PermissionError, match="open in this process"):
        tmp_path.rename(tmp_path.with_name("other"))
    mapped = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.int8, (3,))
    with pytest.raises(PermissionError, match=r"rows\.npy"):
        (tmp_path / "rows.npy").unlink()
    del mapped
    (tmp_path / "rows.npy").unlink()


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_embeddings_are_written_and_written_again(suffix, tmp_path):
    settings = {"model": "m", "dtype": "float32", "normalize": True, "dim": 4, "probe": [1.0, 0.0, 0.0, 0.0]}
    for keys in (["a.png", "b.png"], ["c.png"]):
        write_embeddings(tmp_path / f"f{suffix}", settings, keys)
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("kind", ["exact", "int8", "hnsw"])
def test_an_index_is_built_and_brought_up_to_date(repositories, kind, tmp_path):
    clip = load(repositories["tiny ViT"])
    settings = store_settings(*clip, "float32", True)
    for count, keys in ((2, ["a.png", "b.png"]), (3, ["a.png", "c.png"])):
        write_embeddings(tmp_path / "f.npy", settings, keys)
        options = {"kind": kind, "queries": ["a cat"], "text_tower": kind == "exact"}
        index = ImageIndex.build(tmp_path / "f.npy", tmp_path / "index", *clip, **options)
        assert len(index) == count
        del index


def test_a_model_and_a_checkpoint_are_replaced(archives, tmp_path):
    for _ in range(2):
        convert(str(archives["tiny ViT"]), tmp_path / "model", force=True, report=lambda _: None)
        to_openai(tmp_path / "model", tmp_path / "model.pt", force=True, report=lambda _: None)
