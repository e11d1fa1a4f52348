"""`hf-clip embed` into a directory: shards, resuming, changed sources, bad input."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from support.commands import run
from support.originals import FAMILIES
from support.photos import BROKEN, READABLE, draw, load
from support.threads import as_many_threads

from hf_clip import embed_images
from hf_clip.embedding import images
from hf_clip.embedding.parts import PartStore, iter_parts
from hf_clip.utils.places import place_at

pa = pytest.importorskip("pyarrow")
import pyarrow.dataset as ds  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402


@pytest.fixture
def embed(repositories, photos, tmp_path):
    """Run `embed` into a directory, in batches of 2 and parts of 2 rows."""

    def embed(*options, source=photos, output="emb", family=FAMILIES[0]):
        arguments = ["--output", tmp_path / output, "--model", repositories[family], "--batch-size", 2]
        return run("embed", source, *arguments, "--part-rows", 2, *options)

    return embed


def held(folder: Path) -> dict[str, np.ndarray]:
    return {
        path: row
        for columns, rows in iter_parts(place_at(str(folder)))
        for path, row in zip(columns["path"].to_pylist(), rows, strict=True)
    }


def all_rows(folder: Path) -> list[dict]:
    return ds.dataset(folder, format="parquet").to_table().to_pylist()


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_rows_are_those_of_embed_images_at_the_same_batch_size(embed, photos, repositories, family, tmp_path, capsys):
    (photos / "ä6.png").unlink()
    assert embed(family=family) == 0
    paths = sorted(str(photos / path) for path in READABLE[:-1])
    expected = embed_images(*load(repositories[family]), paths, batch_size=2).numpy()
    found = held(tmp_path / "emb")
    assert all(np.array_equal(found[os.path.relpath(p, photos)], e) for p, e in zip(paths, expected, strict=True))
    out, err = capsys.readouterr()
    assert out == f"done: {tmp_path / 'emb'}, 6 new embeddings of 64 dimensions, 0 images of earlier runs\n"
    assert "skipped: 1 of 7 images could not be read (broken.png); 1 for: it is no image" in err
    failed = [row for row in all_rows(tmp_path / "emb") if row["error"]]
    assert [row["path"] for row in failed] == [BROKEN]
    assert np.isnan(failed[0]["embedding"]).all()


def test_shards_in_any_order_equal_one_run(embed, tmp_path):
    embed(output="whole")
    for number in (3, 1, 4, 2):
        assert embed("--shard", f"{number}/4", output="shards") == 0
    assert same(held(tmp_path / "shards"), held(tmp_path / "whole"))
    assert len(all_rows(tmp_path / "shards")) == 8
    before = set((tmp_path / "shards").iterdir())
    assert embed(output="shards") == 0
    assert set((tmp_path / "shards").iterdir()) == before


def test_only_what_is_new_or_changed_is_embedded(embed, photos, tmp_path, monkeypatch):
    written, write = [], PartStore.write

    def record(store, table):
        written.extend(table["path"].to_pylist())
        write(store, table)

    monkeypatch.setattr(PartStore, "write", record)
    embed()
    assert sorted(written) == sorted([*READABLE, BROKEN])
    written.clear()
    assert embed() == 0
    assert written == []
    draw(photos / "aa.png", 20)
    draw(photos / "b/1.jpg", 21)
    (photos / "ä6.png").unlink()
    (photos / "0.png").unlink()
    assert embed() == 0
    assert sorted(written) == ["aa.png", "b/1.jpg"]
    assert embed(output="fresh") == 0
    assert same(held(tmp_path / "emb"), held(tmp_path / "fresh"))
    assert sorted(row["key"] for row in all_rows(tmp_path / "emb")) == sorted(
        row["key"] for row in all_rows(tmp_path / "fresh")
    )
    written.clear()
    draw(photos / BROKEN, 22)
    assert embed() == 0
    assert written == [BROKEN]


@pytest.mark.parametrize("options", [[], pytest.param(["--engine", "ray"], marks=pytest.mark.integration)], ids=str)
def test_a_run_with_nothing_new_imports_no_pytorch(options, embed, repositories, photos, tmp_path):
    assert embed() == 0
    code = """
import sys
from hf_clip_command import main
try:
    main()
finally:
    assert not {"torch", "transformers"} & sys.modules.keys()
"""
    arguments = ["embed", photos, "--output", tmp_path / "emb", "--model", repositories[FAMILIES[0]], "--batch-size", 2]
    command = [sys.executable, "-c", code, *map(str, arguments), *options]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "0 new embeddings" in again.stdout


def test_a_run_with_nothing_new_loads_no_model(embed, photos, tmp_path, monkeypatch, capsys):
    from hf_clip.cli import common

    embed()
    loads, load = [], common.load_model
    monkeypatch.setattr(common, "load_model", lambda *arguments: loads.append(arguments) or load(*arguments))
    capsys.readouterr()
    assert embed() == 0
    assert "0 new embeddings" in capsys.readouterr().out
    (photos / "0.png").unlink()
    assert embed() == 0
    assert "1 dropped" in capsys.readouterr().out
    assert loads == []
    draw(photos / "aa.png", 20)
    assert embed() == 0
    assert len(loads) == 1


def test_errors_are_retried_when_asked(embed, tmp_path, capsys):
    embed()
    capsys.readouterr()
    embed("--retry-errors")
    assert "1 of 8 images could not be read" in capsys.readouterr().err
    assert len(all_rows(tmp_path / "emb")) == 8


def test_rows_of_failed_images_are_left_out_when_asked(embed, tmp_path, capsys):
    """As vector databases want it, which refuse NaN; every run tries these images again."""
    for _ in range(2):
        assert embed("--drop-errors") == 0
        assert "1 of 8 images could not be read (broken.png)" in capsys.readouterr().err
        assert sorted(row["path"] for row in all_rows(tmp_path / "emb")) == READABLE


def test_an_interrupted_run_keeps_what_it_embedded(embed, tmp_path, capsys, monkeypatch):
    embed(output="whole")
    calls, real = [], images.features

    def stop_at_the_third(*arguments):
        calls.append(1)
        if len(calls) == 4:  # the first is the probe's
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(images, "features", stop_at_the_third)
        assert embed() == 130
    stopped = f"stopped: 3 of 8 images are kept in {tmp_path / 'emb'}; run the same command to go on"
    assert stopped in capsys.readouterr().err
    assert len(all_rows(tmp_path / "emb")) == 4
    assert embed() == 0
    assert same(held(tmp_path / "emb"), held(tmp_path / "whole"))


def test_strict_stops_at_the_first_unreadable_image(embed, tmp_path, capsys):
    assert embed("--strict") == 1
    assert "broken.png" in capsys.readouterr().err
    assert len(all_rows(tmp_path / "emb")) < 8


def test_bytes_in_parquet_give_the_embeddings_of_the_folder(embed, photos, tmp_path):
    paths = sorted(READABLE)
    table = pa.table({"image": [(photos / p).read_bytes() for p in paths], "caption": [f"text {p}" for p in paths]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert embed("--text-column", "caption", "--row-dtype", "float16", source=tmp_path / "t.parquet", output="p") == 0
    assert embed() == 0
    folder = held(tmp_path / "emb")
    rows = all_rows(tmp_path / "p")
    assert [row["caption"] for row in rows] == [f"text {p}" for p in paths]
    for path, row in zip(paths, rows, strict=True):
        assert np.array_equal(np.array(row["embedding"], np.float16), folder[path].astype(np.float16))
        assert len(row["text_embedding"]) == 64


def test_the_layout_of_clip_retrieval(embed, tmp_path):
    assert embed("--clip-retrieval") == 0
    found = held(tmp_path / "emb")
    paths, rows = [], []
    for number in range(len(list((tmp_path / "emb/img_emb").iterdir()))):
        rows.append(np.load(tmp_path / f"emb/img_emb/img_emb_{number}.npy"))
        paths += pq.read_table(tmp_path / f"emb/metadata/metadata_{number}.parquet")["image_path"].to_pylist()
    assert rows[0].dtype == np.float16
    assert np.array_equal(np.concatenate(rows), np.stack([found[path] for path in paths]).astype(np.float16))
    assert len(paths) == 7


def test_an_index_of_a_directory_follows_it(embed, photos, tmp_path, capsys):
    embed()
    assert run("index", tmp_path / "emb", "-o", tmp_path / "i") == 0
    draw(photos / "aa.png", 20)
    embed()
    capsys.readouterr()
    assert run("index", tmp_path / "emb", "-o", tmp_path / "i") == 0
    assert "8 images, 1 of them new" in capsys.readouterr().out
    assert run("search", tmp_path / "i", "a cat", "--html", tmp_path / "s.html") == 0
    assert (tmp_path / "s.html").read_text().count("data:image/jpeg") == 8


@pytest.mark.parametrize("source", ["t.tar", "*.tar"])
def test_a_page_shows_images_inside_tars(source, embed, photos, tmp_path, capsys):
    write_tar(tmp_path / "t.tar", photos, ["0.png", "b/1.jpg"])
    assert embed(source=tmp_path / source) == 0
    assert run("index", tmp_path / "emb", "-o", tmp_path / "i") == 0
    assert run("search", tmp_path / "i", "a cat", "--html", tmp_path / "s.html", "--plot", tmp_path / "s.png") == 0
    assert (tmp_path / "s.html").read_text().count("data:image/jpeg") == 2
    assert "t.tar:b/1.jpg" in (tmp_path / "s.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "3/2"], "--shard is '3/2': write K/N"),
        (["--shard", "1/2", "--clip-retrieval"], "--clip-retrieval wants all images"),
        (["--text-column", "caption"], "has no column caption"),
        (["--address", "auto"], "--address auto wants --engine ray"),
    ],
)
def test_bad_arguments_are_one_sentence(embed, options, message, capsys):
    assert embed(*options) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize(
    "option",
    [
        "--shard 1/2",
        "--engine ray",
        "--text-column text",
        "--row-dtype float32",
        "--part-rows 10000",
        "--retry-errors",
        "--drop-errors",
        "--clip-retrieval",
    ],
)
def test_no_option_is_ignored_for_one_file(option, photos, tmp_path, capsys):
    """An option without effect on a file is refused by its name, default value or not."""
    output = tmp_path / "out.npy"
    assert run("embed", photos, "-o", output, "-m", "nowhere", *option.split()) == 1
    assert capsys.readouterr().err == (
        f"error: {option.split()[0]} wants a directory as --output: {output} is one file\n"
    )
    assert list(tmp_path.iterdir()) == [photos]


def test_another_model_is_refused(embed, capsys):
    embed()
    assert embed(family=FAMILIES[1]) == 1
    assert "was made with another model" in capsys.readouterr().err


def write_tar(path: Path, photos: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.add(photos / name, name)


def test_a_tar_cut_short_is_told_at_the_end_and_done_later(embed, photos, tmp_path, capsys):
    (tmp_path / "tars").mkdir()
    for name in "abc":
        write_tar(tmp_path / f"tars/{name}.tar", photos, ["0.png", "b/1.jpg"])
    whole = (tmp_path / "tars/b.tar").read_bytes()
    (tmp_path / "tars/b.tar").write_bytes(whole[: len(whole) // 2])
    assert embed(source=tmp_path / "tars") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: 1 files could not be read to their end: ")
    assert re.search(r"b\.tar is (cut short|no uncompressed tar)", last)
    assert {row["path"][0] for row in all_rows(tmp_path / "emb")} >= {"a", "c"}
    (tmp_path / "tars/b.tar").write_bytes(whole)
    assert embed(source=tmp_path / "tars") == 0
    assert sorted(held(tmp_path / "emb")) == [f"{tar}.tar:{name}" for tar in "abc" for name in ("0.png", "b/1.jpg")]


def test_what_changes_during_a_run_is_done_by_the_next(embed, photos, tmp_path, monkeypatch):
    calls, real = [], images.features

    def change(*arguments):
        calls.append(1)
        if len(calls) == 2:  # the first is the probe's
            (photos / "f5.gif").unlink()
            draw(photos / "ä6.png", 40)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(images, "features", change)
        assert embed() == 0
    assert [row["path"] for row in all_rows(tmp_path / "emb") if row["error"]] == [BROKEN, "f5.gif"]
    assert embed() == 0
    assert embed(output="fresh") == 0
    assert same(held(tmp_path / "emb"), held(tmp_path / "fresh"))
    assert len(all_rows(tmp_path / "emb")) == 7


def test_two_runs_into_one_output_are_refused(embed, tmp_path, capsys):
    assert embed() == 0
    with FileLock(tmp_path / "emb/.1of1.lock"):
        assert embed() == 1
    assert capsys.readouterr().err.endswith("emb: wait for it, or stop it\n")


def test_a_table_without_images_is_one_sentence(embed, tmp_path, capsys):
    pq.write_table(pa.table({"a": [b""], "b": [1]}), tmp_path / "t.parquet")
    assert embed(source=tmp_path / "t.parquet") == 1
    assert "pass --image-column with one of a, b" in capsys.readouterr().err
    assert not (tmp_path / "emb").exists()


@pytest.mark.slow
def test_broken_huge_and_repeated_images_are_listed_and_do_no_harm(embed, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "bad"
    folder.mkdir()
    for number in range(100):
        (folder / f"broken{number:03d}.jpg").write_bytes(b"no image" * number)
    for number in range(20):
        Image.new("1", (1000, 1000)).save(folder / f"huge{number:02d}.png")
    for number in range(50):
        draw(folder / f"same{number:02d}.png", 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    assert embed("--batch-size", 32, source=folder) == 0
    out, err = capsys.readouterr()
    assert "50 new embeddings" in out
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 1
    assert "120 of 170 images could not be read" in skipped[0]
    assert "100 for: it is no image" in skipped[0]
    assert "20 for: Image size" in skipped[0]
    rows = list(held(tmp_path / "emb").values())
    assert len(rows) == 50
    assert all(np.array_equal(row, rows[0]) for row in rows)
    assert len(all_rows(tmp_path / "emb")) == 170


def test_a_full_disk_loses_no_finished_part(embed, tmp_path, capsys, monkeypatch):
    calls, write = [], pq.write_table

    def full(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        assert embed() == 1
    assert "cannot be written: there is no room for it" in capsys.readouterr().err
    assert len(all_rows(tmp_path / "emb")) == 4
    assert embed() == 0
    assert len(all_rows(tmp_path / "emb")) == 8


@pytest.mark.parametrize(
    ("count", "kills"),
    [pytest.param(120, 3, marks=pytest.mark.slow), pytest.param(20_000, 10, marks=pytest.mark.exhaustive)],
)
def test_a_run_killed_at_random_times_ends_with_each_key_once(count, kills, repositories, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(count):
        draw(folder / f"{seed:05d}.png", seed % 30)
    model = repositories[FAMILIES[1]]
    arguments = ["embed", folder, "-o", tmp_path / "emb", "-m", model, "--batch-size", 8, "--part-rows", 16]
    command = [sys.executable, "-m", "hf_clip", *map(str, arguments)]
    rng, killed = np.random.default_rng(0), 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=as_many_threads())
        parts, begin = len(list((tmp_path / "emb").glob("part-*"))), time.monotonic()
        while process.poll() is None and len(list((tmp_path / "emb").glob("part-*"))) == parts:
            assert time.monotonic() - begin < 600
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05 if count < 1000 else 5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed > 0
    assert run(*arguments) == 0
    keys = [row["key"] for row in all_rows(tmp_path / "emb")]
    assert len(keys) == len(set(keys)) == count
    assert not list((tmp_path / "emb").glob(".part*"))
    paths = sorted(map(str, folder.iterdir()))
    expected = embed_images(*load(model), paths, batch_size=8).numpy()
    found = held(tmp_path / "emb")
    assert np.array_equal(np.stack([found[Path(path).name] for path in paths]), expected)
    parts = set((tmp_path / "emb").iterdir())
    assert run(*arguments) == 0
    assert set((tmp_path / "emb").iterdir()) == parts
