"""An index is one generation, complete and undamaged, or refused in one sentence."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from benchmarks.vectors import two_cones
from hf_clip.plots.sheet import thumbnail_of, write_sheet
from hf_clip.search import graph, storage
from hf_clip.search.codes import write_codes
from hf_clip.search.storage import (
    CODES_FILE,
    COLUMNS_FILE,
    GRAPH_FILE,
    ROWS_FILE,
    SETTINGS_FILE,
    SearchError,
    image_source,
    open_index_files,
    read_index_settings,
    write_index_settings,
    write_rows,
)
from hf_clip.utils.files import new_directory

pa = pytest.importorskip("pyarrow")
pytest.importorskip("usearch")
DIM, COUNT = 16, 40
PLAIN = {"model": "x", "dtype": "float32", "probe": [0.0], "text_probe": [0.0], "folder": None}


def write_index(path: Path, kind: str = "hnsw", seed: int = 0, **settings) -> np.ndarray:
    """Write an index without a model; each path has `seed` and the number of its row."""
    rows = two_cones(COUNT, 1, DIM, seed)[0]
    columns = [f"{seed}-{row}" for row in range(COUNT)]
    with new_directory(path) as work:
        write_rows(work, iter([(pa.table({"key": columns, "path": columns}), rows)]), rows.dtype, DIM)
        if kind == "hnsw":
            tree = graph.new_graph(DIM)
            graph.grow(tree, rows)
            tree.save(str(work / GRAPH_FILE))
        scales = {}
        if kind == "int8":
            made = write_codes(rows, work / CODES_FILE)
            scales = {"center": made.center.tolist(), "scale": made.scale.tolist()}
        write_index_settings(work, {**PLAIN, "kind": kind, "expansion": 32, **scales, **settings})
    return rows


@pytest.mark.parametrize("kind", ["exact", "int8", "hnsw"])
def test_what_was_written_is_opened_also_as_a_copy(kind, tmp_path):
    rows = write_index(tmp_path / "i", kind=kind)
    shutil.copytree(tmp_path / "i", tmp_path / "copy", copy_function=shutil.copyfile)
    for path in (tmp_path / "i", tmp_path / "copy"):
        files = open_index_files(path)
        assert np.array_equal(files.rows, rows)
        assert files.columns["path"].to_pylist() == [f"0-{row}" for row in range(COUNT)]
        assert (files.graph is None) == (kind != "hnsw")
        assert (files.codes is None) == (kind != "int8")


def test_an_unchanged_index_is_not_read_whole(tmp_path, monkeypatch):
    write_index(tmp_path / "i")
    monkeypatch.setattr("hf_clip.search.storage.file_sha256", None)
    assert len(open_index_files(tmp_path / "i").rows) == COUNT


def mutated(original: Path, target: Path, rng: np.random.Generator) -> str:
    """Copy an index with one change in one file: bytes flipped, cut, added, moved or zeroed, or a file exchanged."""
    shutil.copytree(original, target)
    name = rng.choice([SETTINGS_FILE, ROWS_FILE, COLUMNS_FILE, GRAPH_FILE])
    content = bytearray((target / name).read_bytes())
    # headers and ends are where files break most
    place = int(rng.choice([rng.integers(len(content)), rng.integers(min(200, len(content))), len(content) - 1]))
    how = rng.choice(["flip", "cut", "add", "zero", "repeat"])
    if how == "flip":
        content[place] ^= 1 << int(rng.integers(8))
    elif how == "cut":
        del content[place : place + int(rng.integers(1, 64))]
    elif how == "add":
        content[place:place] = rng.bytes(int(rng.integers(1, 64)))
    elif how == "zero":
        content[place] = 255 - content[place]
        content[place + 1 : place + 64] = bytes(len(content[place + 1 : place + 64]))
    else:
        content += content[place:]
    (target / name).write_bytes(content)
    return f"{how} at {place} of {name}"


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_no_mutated_index_is_opened(count, tmp_path):
    write_index(tmp_path / "i")
    rng = np.random.default_rng(0)
    for _ in range(count):
        what = mutated(tmp_path / "i", tmp_path / "m", rng)
        with pytest.raises(SearchError) as refused:
            open_index_files(tmp_path / "m")
        starts = tuple(f"{tmp_path / 'm'} {reason}" for reason in ("is damaged, ", "was made by another version"))
        assert str(refused.value).startswith(starts), what
        assert "\n" not in str(refused.value), what
        shutil.rmtree(tmp_path / "m")


# other bytes of the same values
RESPELLED = {
    "a blank less": lambda text: text.replace(", ", ",", 1),
    "a line end more": lambda text: text + "\n",
    "an escape": lambda text: text.replace("kind", "\\u006bind", 1),
    "an exponent": lambda text: text.replace("1e-07", "1E-07"),
    "a name twice": lambda text: text.replace("{", '{"kind": "hnsw", ', 1),
    "another encoding": lambda text: text.encode("utf-16").decode("latin-1"),
}


@pytest.mark.parametrize("how", RESPELLED)
def test_settings_of_the_same_values_in_other_bytes_are_refused(how, tmp_path):
    write_index(tmp_path / "i", "exact", probe=[1e-7])
    file = tmp_path / "i" / SETTINGS_FILE
    changed = RESPELLED[how](file.read_text())
    assert changed != file.read_text()
    file.write_bytes(changed.encode("latin-1"))
    with pytest.raises(SearchError, match=r"is damaged, settings\.json has changed: build it again"):
        open_index_files(tmp_path / "i")


FORGED = {
    "rows of int32": lambda path: np.save(path / ROWS_FILE, np.ones((COUNT, DIM), np.int32)),
    "a row of NaN": lambda path: np.save(path / ROWS_FILE, np.full((COUNT, DIM), np.nan, np.float32)),
    "a longer row": lambda path: np.save(path / ROWS_FILE, np.ones((COUNT, DIM), np.float32)),
    "fewer rows": lambda path: np.save(path / ROWS_FILE, two_cones(COUNT - 1, 1, DIM)[0]),
    "pickled rows": lambda path: np.save(path / ROWS_FILE, np.array([{}] * COUNT, object), allow_pickle=True),
}


@pytest.mark.parametrize("what", FORGED)
def test_contents_are_checked_even_where_the_checksums_are_right(what, tmp_path):
    """Someone who makes an index by hand can make its checksums as well."""
    write_index(tmp_path / "i", kind="exact")
    FORGED[what](tmp_path / "i")
    settings = {**PLAIN, "kind": "exact", "expansion": 32}
    loaded = np.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "load", lambda *_, **__: np.zeros((COUNT, DIM), np.float32))
        write_index_settings(tmp_path / "i", settings)
    assert np.load is loaded
    os.utime(tmp_path / "i" / ROWS_FILE, (1, 1))
    with pytest.raises(SearchError, match=r"is damaged, (row 0 is not a unit vector|rows\.npy)"):
        open_index_files(tmp_path / "i")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "x"), ("expansion", "9"), ("expansion", 0), ("folder", 5), ("exif", 5), ("files", {}),
        ("files", {ROWS_FILE: 5, COLUMNS_FILE: {}}), ("probe", ["x"]), ("text_probe", [None]), ("count", True),
    ],
)  # fmt: skip
def test_settings_that_no_index_has_are_refused(name, value, tmp_path):
    write_index(tmp_path / "i")
    file = tmp_path / "i" / SETTINGS_FILE
    settings = json.loads(file.read_text())
    del settings["checksum"]
    file.write_text(storage._settings_text({**settings, name: value}))
    with pytest.raises(SearchError, match=r"is damaged, in settings\.json its .* is .*: build it again"):
        open_index_files(tmp_path / "i")


def test_files_of_two_indexes_do_not_mix(tmp_path):
    for seed, name in enumerate(("a", "b")):
        write_index(tmp_path / name, seed=seed)
    shutil.copy2(tmp_path / "a" / COLUMNS_FILE, tmp_path / "b" / COLUMNS_FILE)
    with pytest.raises(SearchError, match=r"the contents of columns\.arrow have changed: build it again"):
        open_index_files(tmp_path / "b")


WRITER = """
import itertools, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from search.test_storage import write_index
for number in itertools.count():
    write_index(Path(sys.argv[1]), "exact", number)
"""


@pytest.mark.parametrize("loads", [300, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_an_index_opened_while_it_is_replaced_is_one_generation(loads, tmp_path):
    write_index(tmp_path / "i", "exact")
    places = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    writer = subprocess.Popen([sys.executable, "-W", "ignore", "-c", WRITER, tmp_path / "i", *places])
    generations = set()
    try:
        done = 0
        while done < loads or len(generations) < 20:
            assert writer.poll() is None
            try:
                files = open_index_files(tmp_path / "i")
            except SearchError as error:
                # where the system cannot exchange two folders in one step, there is none for an instant
                if str(error).startswith("there is no index at "):
                    continue
                raise
            done += 1
            seed, _, row = files.columns["path"][COUNT - 1].as_py().partition("-")
            assert (len(files.columns), row) == (COUNT, str(COUNT - 1))
            assert np.array_equal(files.rows, two_cones(COUNT, 1, DIM, int(seed))[0])
            generations.add(files.settings["generation"])
    finally:
        writer.kill()
        writer.wait()


def test_an_index_of_an_earlier_version_is_named(tmp_path):
    write_index(tmp_path / "i")
    (tmp_path / "i" / SETTINGS_FILE).write_text(json.dumps({"kind": "exact", "model": "x"}))
    with pytest.raises(SearchError, match="was made by another version of hf_clip: build it again"):
        read_index_settings(tmp_path / "i")


def test_thumbnails_of_images_at_urls_are_shown(tmp_path):
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a b.png")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a%20b.png"
        assert thumbnail_of(image_source({"folder": "/elsewhere"}, url)).size == (40, 20)
        assert write_sheet([(image_source({"folder": "/elsewhere"}, url), url)], "found", tmp_path / "s.html") == 1
    finally:
        server.shutdown()
