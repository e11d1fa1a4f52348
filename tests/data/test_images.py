"""References to images: what a stranger's table may name, and what opening an image may cost."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.commands import run
from support.data_sets import write_csv, write_jsonl, write_parquet
from support.photos import draw

from hf_clip import HFCLIPImageProcessor, ImageRef, UnreadableImageError
from hf_clip.data import images
from hf_clip.data.read import read_rows
from hf_clip.data.rows import DataError
from hf_clip.data.sources import open_source
from hf_clip.data.tars import find_image
from hf_clip.utils.places import place_at


@pytest.fixture
def folder(tmp_path) -> Path:
    """A table's folder with an image, and an image outside of it."""
    (tmp_path / "data/inner").mkdir(parents=True)
    draw(tmp_path / "data/inner/0.png", 0)
    draw(tmp_path / "secret.png", 1)
    return tmp_path / "data"


@pytest.fixture
def no_fsspec(monkeypatch):
    """Fail whatever would reach a file system of fsspec."""

    def fail(address: str):
        raise AssertionError(f"{address} was read")

    monkeypatch.setattr(images, "place_at", fail)


HOSTILE = [
    "{root}/secret.png",
    "../secret.png",
    "inner/../../secret.png",
    "file://{root}/secret.png",
    "FILE://{root}/secret.png",
    "local://{root}/secret.png",
    "s3://bucket/secret.png",
    "reference://?fo={root}/secret.png",
    "zip://secret.png::file://{root}/secret.zip",
    "simplecache::file://{root}/secret.png",
    "tar://0+100/{root}/secret.png",
    "parquet://0+0+image/{root}/secret.parquet",
]


@pytest.mark.usefixtures("no_fsspec")
@pytest.mark.parametrize("cell", HOSTILE)
def test_a_cell_names_no_file_outside_of_its_folder(cell, folder):
    """The same for every kind of table, and for the columns of an index."""
    value = cell.format(root=folder.parent)
    rows = [{"image": value, "text": "a secret"}]
    for table in (write_csv(folder / "t.csv", rows), write_jsonl(folder / "t.jsonl", rows)):
        with pytest.raises(DataError, match=r"row 1 of .* names the image .* which is not read"):
            read_rows(table)
    pytest.importorskip("pyarrow")
    struct = [{"image": {"bytes": None, "path": value}, "text": "a secret"}]
    for place, table in enumerate((rows, struct)):
        path = write_parquet(folder / f"{place}.parquet", table)
        with pytest.raises(DataError, match="which is not read"):
            read_rows(path)
        ((image, _),) = open_source(str(path)).images(print)
        if place == 0:
            with pytest.raises(UnreadableImageError, match=r"not read|lies outside"):
                ImageRef.from_row(image.as_row()).open()
    with pytest.raises(UnreadableImageError):
        find_image(value, str(folder)).open()


def test_a_cell_of_structs_names_no_file_outside_of_its_folder(folder):
    pytest.importorskip("pyarrow")
    for path in ("../secret.png", f"{folder.parent}/secret.png", "s3://bucket/x.png"):
        table = write_parquet(folder / "t.parquet", [{"image": {"bytes": None, "path": path}}])
        ((image, _),) = open_source(str(table)).images(print)
        with pytest.raises(UnreadableImageError, match=r"lies outside of|are not read"):
            image.open()
        images._column.cache_clear()
    table = write_parquet(folder / "t.parquet", [{"image": {"bytes": None, "path": "inner/0.png"}}])
    ((image, _),) = open_source(str(table)).images(print)
    assert image.open().size == (70, 40)


@pytest.mark.usefixtures("no_fsspec")
def test_callers_and_indexes_reach_no_file_system_unasked(folder):
    for value in ("s3://bucket/0.png", "reference://x", "zip://a::file://b"):
        with pytest.raises(UnreadableImageError, match="are not read"):
            ImageRef.of(value).open()
    with pytest.raises(UnreadableImageError, match=r"addresses of the kind reference://"):
        find_image("0.png", "reference://somewhere").open()
    assert find_image("inner/0.png", str(folder)).open().size == (70, 40)


def test_what_is_allowed_by_name_is_read(folder):
    fs = place_at("memory://").fs
    fs.pipe_file("/bucket/0.png", (folder / "inner/0.png").read_bytes())
    try:
        assert ImageRef.of("memory://bucket/0.png", schemes=["memory"]).open().size == (70, 40)
        outside = [{"image": str(folder.parent / "secret.png"), "text": "a"}, {"image": "../secret.png", "text": "b"}]
        rows = read_rows(write_csv(folder / "t.csv", outside), allow_schemes=["file"])
        assert [row.open().size for row in rows] == [(69, 41)] * 2
        with pytest.raises(UnreadableImageError, match="addresses with :: are not read"):
            ImageRef.of("simplecache::memory://bucket/0.png", schemes=["memory", "simplecache"]).open()
    finally:
        fs.rm("/bucket", recursive=True)


@pytest.mark.parametrize("verb", ["classify", "where"])
def test_verbs_read_an_address_when_told(verb, folder, repositories, tmp_path, capsys):
    fs = place_at("memory://").fs
    fs.pipe_file("/bucket/0.png", (folder / "inner/0.png").read_bytes())
    arguments = [verb, "memory://bucket/0.png", "-m", repositories["tiny ViT"], "--plot", tmp_path / "p.png"]
    arguments += ["a cat"] if verb == "where" else ["-l", "a cat,a dog"]
    try:
        assert run(*arguments) == 1
        assert "addresses of the kind memory:// are not read: --allow-scheme memory" in capsys.readouterr().err
        assert run(*arguments, "--allow-scheme", "memory") == 0
        assert "a cat" in capsys.readouterr().out
        assert (tmp_path / "p.png").is_file()
    finally:
        fs.rm("/bucket", recursive=True)


def test_embed_reads_outside_of_the_folder_when_told(folder, repositories, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    table = write_parquet(folder / "t.parquet", [{"image": "../secret.png"}, {"image": "inner/0.png"}])
    arguments = ["embed", table, "-o", tmp_path / "emb", "-m", repositories["tiny ViT"]]
    assert run(*arguments) == 0
    assert "1 new embeddings" in capsys.readouterr().out
    assert run(*arguments, "--allow-scheme", "file", "--retry-errors") == 0
    assert "1 new embeddings of 64 dimensions, 1 images of earlier runs" in capsys.readouterr().out


OPEN_EACH = """
import sys
sys.path.insert(0, sys.argv[1])
from hf_clip import ImageRef
for path in sys.argv[2:]:
    try:
        ImageRef.of(path).open()
    except ValueError as error:
        print(error)
"""


def test_only_regular_files_of_bounded_size_are_opened(tmp_path):
    """Named pipes, sockets, devices and folders are refused at once, where reading would hang or never end."""
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.png"))
        (tmp_path / "folder.png").mkdir()
        with (tmp_path / "huge.png").open("wb") as file:
            file.truncate(100_000_001)
        paths = [str(tmp_path / path) for path in ("pipe.png", "s.png", "folder.png", "huge.png", "/dev/zero")]
        # in a process of its own, which can be ended
        command = [sys.executable, "-c", OPEN_EACH, str(Path(__file__).parents[2]), *paths]
        found = subprocess.run(command, capture_output=True, text=True, timeout=600)
        answers = found.stdout.splitlines()
        assert len(answers) == len(paths), found.stderr[-500:]
        for path, answer in zip(paths, answers, strict=True):
            assert answer.startswith(f"cannot read {path}: ")


@pytest.mark.parametrize("keys", [["a", "a"], ["a", None]])
def test_keys_that_repeat_are_refused(keys, folder, repositories, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    table = write_parquet(folder / "t.parquet", [{"image": "inner/0.png", "id": key} for key in keys])
    assert run("embed", table, "--key-column", "id", "-o", tmp_path / "emb", "-m", repositories["tiny ViT"]) == 1
    message = "two images with the key a" if keys[1] else "row 1 of .*t.parquet has no key"
    assert re.search(rf"error: .*{message}.*: choose another --key-column than id", capsys.readouterr().err)
    assert not (tmp_path / "emb").exists()


def test_names_that_become_equal_are_refused(tmp_path):
    for name in ("a\n.png", "a\\n.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    with pytest.raises(DataError, match=r"has two images with the key a\\n\.png: rename one of the files"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(("suffix", "expected"), [("jpg", (200, 150)), ("png", (400, 300))])
def test_a_draft_is_a_fraction_of_a_jpeg(suffix, expected, tmp_path):
    """At least as long as asked for; other formats, and images that the caller has opened, are read in full."""
    path = tmp_path / f"photo.{suffix}"
    Image.new("RGB", (400, 300)).save(path)
    assert ImageRef.of(path).open(draft_side=100).size == expected
    with Image.open(path) as opened:
        assert ImageRef.of(opened).open(draft_side=100).size == (400, 300)


@pytest.mark.parametrize(
    ("decode", "options", "problem"),
    [
        ("fast", {}, "decode is 'fast': choose full or draft"),
        ("draft", {"do_resize": False}, "does not resize the shortest side: leave it"),
        ("draft", {"size": {"height": 9, "width": 9}}, "does not resize the shortest side: leave it"),
    ],
)
def test_a_draft_needs_a_processor_that_shrinks(decode, options, problem):
    with pytest.raises(ValueError, match=problem):
        images.draft_side(HFCLIPImageProcessor(**options), decode)
    assert images.draft_side(HFCLIPImageProcessor(), "draft") == 448
    assert images.draft_side(HFCLIPImageProcessor(**options), "full") is None
