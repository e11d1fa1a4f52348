"""Folders, patterns, tars and parquet files: the same images, located by keys that stay."""

import io
import os
import re
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from support.data_sets import write_csv, write_jsonl
from support.photos import READABLE, draw, make_photos

from hf_clip.cli.classify import expand
from hf_clip.data.images import ImageRef, files_below, image_paths, left_out
from hf_clip.data.rows import DataError
from hf_clip.data.sources import open_source
from hf_clip.utils.places import place_at

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


def contents(source, reports: list[str] | None = None) -> dict[str, bytes]:
    found = {}
    for image, _ in source.images((reports if reports is not None else []).append):
        row = image.as_row()
        assert all(value is None or isinstance(value, bytes | str | int) for value in row.values())
        found[image.key] = bytes_of(ImageRef.from_row(row))  # as on another machine
    return found


def bytes_of(image: ImageRef) -> bytes:
    content = image._content()
    return Path(content).read_bytes() if isinstance(content, str) else content


def write_tar(path, files: dict[str, bytes]):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_a_folder_gives_what_the_single_file_has(photos):
    source = open_source(str(photos))
    found = contents(source)
    assert sorted(found) == sorted([*READABLE, "broken.png"])
    assert source.count == 8
    assert found["b/1.jpg"] == (photos / "b/1.jpg").read_bytes()


def test_a_version_changes_with_the_file_only(photos):
    def versions():
        return {image.key: image.version for image, _ in open_source(str(photos)).images(print)}

    before = versions()
    draw(photos / "b/1.jpg", 30)
    after = versions()
    assert {key for key in before if before[key] != after[key]} == {"b/1.jpg"}


def test_a_pattern_selects_files(photos):
    assert list(contents(open_source(str(photos / "b/*.jpg")))) == ["1.jpg"]
    assert sorted(contents(open_source(str(photos / "**/*.png")))) == ["0.png", "broken.png", "ä6.png"]


def test_members_of_tars_come_with_their_captions(photos, tmp_path):
    for shard in range(2):
        files = {"x/0.jpg": (photos / "b/1.jpg").read_bytes(), "x/0.txt": b"a dog", "x/1.png": b"broken"}
        write_tar(tmp_path / f"train-{shard}.tar", files)
    source = open_source(str(tmp_path / "train-*.tar"), text_column="text")
    images = list(source.images(print))
    names = [f"train-{s}.tar:x/{n}" for s in range(2) for n in ("0.jpg", "1.png")]
    assert [image.key for image, _ in images] == [image.name for image, _ in images] == names
    assert [values["text"] for _, values in images] == ["a dog", None] * 2
    assert bytes_of(images[2][0]) == (photos / "b/1.jpg").read_bytes()


def test_a_tar_cut_short_is_told_and_the_others_are_read(photos, tmp_path):
    content = (photos / "0.png").read_bytes()
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", {f"{n}.png": content for n in range(3)})
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 2])
    reports = []
    found = contents(open_source(str(tmp_path / "*.tar")), reports)
    assert {key[0] for key in found} >= {"a", "c"}
    assert sum(key[0] == "c" for key in found) == 3
    assert len(reports) == 1
    assert re.search(r"b\.tar is (cut short|no uncompressed tar)", reports[0])


@pytest.mark.parametrize("kind", ["bytes", "path", "struct"])
def test_parquet_holds_bytes_or_paths(kind, photos, tmp_path):
    values = {
        "bytes": [(photos / name).read_bytes() for name in READABLE],
        "path": [f"photos/{name}" for name in READABLE],
        "struct": [{"bytes": (photos / name).read_bytes(), "path": name} for name in READABLE],
    }[kind]
    table = pa.table({"image": values, "year": range(7), "id": [f"k{n}" for n in range(7)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    source = open_source(str(tmp_path / "t.parquet"), key_column="id")
    assert source.count == 7
    assert source.columns == {"year": pa.int64(), "id": pa.string()}
    assert contents(source) == {f"k{n}": (photos / name).read_bytes() for n, name in enumerate(READABLE)}
    numbered = open_source(str(tmp_path / "t.parquet"))
    assert [image.key for image, _ in numbered.images(print)] == [f"t.parquet:{n}" for n in range(7)]


def test_a_store_of_objects_is_read_like_a_folder(photos):
    fs = place_at("memory://").fs
    fs.makedirs("/photos", exist_ok=True)
    for name in ("0.png", "b/1.jpg", ".hidden.png"):
        fs.pipe_file(f"/photos/{name}", (photos / "0.png").read_bytes())
    try:
        found = contents(open_source("memory://photos"))
        assert found == dict.fromkeys(["0.png", "b/1.jpg"], (photos / "0.png").read_bytes())
        assert Image.open(io.BytesIO(found["0.png"])).size == (70, 40)
    finally:
        fs.rm("/photos", recursive=True)


def test_a_later_file_without_a_column_is_named(tmp_path):
    pq.write_table(pa.table({"image": ["a.png"], "year": [2020]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"image": ["b.png"]}), tmp_path / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet has no column year: it has image"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere", {}, "there is no .*nowhere"),
        ("empty", {}, "there are no images in .*empty"),
        ("mixed", {}, "has files of several kinds, 1 of kind image, 1 of kind tar: give a pattern"),
        ("t.parquet", {"image_column": "picture"}, r"t\.parquet has no column picture: it has image, year"),
        ("t.parquet", {"key_column": "id"}, "has no column id"),
        ("t.parquet", {"text_column": "caption"}, "has no column caption: it has year"),
        ("u.parquet", {}, "has no column that is known to hold images: pass --image-column with one of a, b"),
        ("broken.parquet", {}, "is no parquet file"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_sentence(name, options, message, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    draw(tmp_path / "mixed/a.png", 0)
    write_tar(tmp_path / "mixed/a.tar", {})
    pq.write_table(pa.table({"image": [b""], "year": [1]}), tmp_path / "t.parquet")
    pq.write_table(pa.table({"a": [b""], "b": [1]}), tmp_path / "u.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / name), **options)


def test_an_address_that_wants_a_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match=r'pip install "hf_clip\[remote\] @ git'):
        open_source("s3://bucket/photos")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "txt"])
def test_tables_of_text_and_lists_of_paths_are_sources(kind, photos, tmp_path):
    rows = [{"image": f"photos/{name}", "year": str(place)} for place, name in enumerate(READABLE)]
    write = {
        "csv": lambda path: write_csv(path, rows),
        "tsv": lambda path: write_csv(path, rows, "\t"),
        "jsonl": lambda path: write_jsonl(path, rows),
        "txt": lambda path: path.write_text("".join(f"{row['image']}\n" for row in rows)),
    }[kind]
    write(tmp_path / f"t.{kind}")
    source = open_source(str(tmp_path / f"t.{kind}"))
    assert source.columns == ({} if kind == "txt" else {"year": pa.string()})
    found = contents(source)
    assert list(found) == [f"t.{kind}:{place}" for place in range(7)]
    assert list(found.values()) == [(photos / name).read_bytes() for name in READABLE]


def test_images_that_cannot_be_read_are_counted_and_named(photos, tmp_path, monkeypatch):
    """HEIC without pillow-heif, and RAW: in a folder beside others, and alone."""
    monkeypatch.setattr("hf_clip.data.images.has_heif", lambda: False)
    for name in ("a.HEIC", "b/x.dng"):
        (photos / name).write_bytes(b"?")
    source = open_source(str(photos))
    assert source.count == 8
    expected = r'2 files look like images and cannot be read \(a\.HEIC, b/x\.dng\): install the extra "heif"'
    assert re.match(expected, source.unread)
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone/1.heic").write_bytes(b"?")
    with pytest.raises(DataError, match=r"no images in .*phone that can be read: 1 files look like images"):
        open_source(str(tmp_path / "phone"))


def test_links_to_folders_and_files_without_a_suffix_are_named(photos, tmp_path, capsys):
    """In a source, in class folders and in `classify`: a README is no image, a linked file is one."""
    (tmp_path / "far").mkdir()
    draw(tmp_path / "far/7.png", 7)
    (photos / "b/linked").symlink_to(tmp_path / "far")
    (photos / "b/linked.png").symlink_to(tmp_path / "far/7.png")
    (photos / "bare").write_bytes((photos / "0.png").read_bytes())
    (photos / "README").write_text("no image")
    os.mkfifo(photos / "pipe")
    source = open_source(str(photos))
    bare, linked = "images have no suffix and are not read", "links to folders are not followed"
    assert re.match(rf"1 {bare} \(bare\): .*; 1 {linked} \(b/linked\): ", source.unread)
    assert source.count == len(image_paths(photos)) == 9
    assert f"1 {linked} (b/linked)" in left_out(files_below(photos), str(photos))
    assert list(expand([str(photos)])) == image_paths(photos)
    assert f"skipped: {source.unread}" in capsys.readouterr().err


def test_a_compressed_tar_is_named(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"?")
    with pytest.raises(DataError, match=r"x\.tar\.gz is a compressed tar, .*: unpack it to a \.tar"):
        open_source(str(tmp_path / "x.tar.gz"))
