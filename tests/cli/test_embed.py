import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from support.commands import run
from support.originals import FAMILIES
from support.photos import BROKEN, READABLE, assert_close, draw, left_behind, load, read

from hf_clip import HFCLIPModel
from hf_clip.embedding import files as file_store
from hf_clip.embedding.files import FileStore
from hf_clip.embedding.images import embed_images
from hf_clip.embedding.stores import OUTPUT_SUFFIXES


def count(pattern: str, text: str) -> int:
    return int(re.search(pattern, text)[1].replace(",", ""))


def test_optimize(repositories, photos, tmp_path, family, monkeypatch):
    calls, optimize = [], HFCLIPModel.optimize_for_inference
    monkeypatch.setattr(
        HFCLIPModel, "optimize_for_inference", lambda self: calls.append(self.training) or optimize(self)
    )
    arguments = ["embed", photos, "-m", repositories[family], "-o"]
    assert run(*arguments, tmp_path / "exact.npy") == run(*arguments, tmp_path / "fast.npy", "--optimize") == 0
    assert calls == [False]
    assert_close(read(tmp_path / "fast.npy"), read(tmp_path / "exact.npy"))


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_embed_writes_what_embed_images_gives(repositories, photos, embed, family, suffix, tmp_path, capsys):
    normalize = suffix != ".npy"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    options = [] if normalize else ["--no-normalize"]
    assert embed(*options, output=f"new/out{suffix}", family=family)[0] == 0
    out, err = capsys.readouterr()
    done = f"done: {tmp_path / 'new' / 'out'}{suffix}, 7 new embeddings of 64 dimensions, 0 images of earlier runs\n"
    assert out == done
    assert f"skipped: cannot read {BROKEN}: it is no image" in err
    assert f"skipped: 1 of 8 images could not be read ({BROKEN}); 1 for: it is no image" in err
    images = [photos / path for path in READABLE]
    expected = embed_images(*load(repositories[family]), images, normalize=normalize)
    assert_close(read(tmp_path / "new" / f"out{suffix}"), dict(zip(READABLE, expected.numpy(), strict=True)))
    assert not left_behind(tmp_path / "new")


def test_an_interrupted_run_goes_on(embed, tmp_path, capsys, monkeypatch):
    assert embed(output="whole.npy") == (0, READABLE)
    assert "going on" not in capsys.readouterr().err
    append = FileStore.append

    def stop_at_the_second(store, batch):
        if batch["path"][0] == READABLE[2]:
            raise KeyboardInterrupt
        append(store, batch)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "append", stop_at_the_second)
        assert embed() == (130, READABLE[:2])
        assert embed("--restart") == (130, READABLE[:2])
    partial = tmp_path / "out.npy.partial"
    err = capsys.readouterr().err
    for again in ("", " without --restart"):
        assert f"stopped: 2 of 8 images are kept in {partial}; run the same command{again} to go on" in err
    assert partial.stat().st_size == 2 * 64 * 4
    assert not (tmp_path / "out.npy").exists()

    assert embed() == (0, READABLE[2:])
    err = capsys.readouterr().err
    assert "going on: 2 of 8 images are embedded already" in err
    assert "| 2/8 [" in err.split("images: ")[1]  # the bar starts there
    assert_close(read(tmp_path / "out.npy"), read(tmp_path / "whole.npy"))
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_a_finished_output_follows_its_folder(embed, photos, suffix, tmp_path, capsys):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"out{suffix}"
    embed(output=output)
    before = output.stat()
    capsys.readouterr()
    assert embed(output=output) == (0, [])
    assert f"done: {output}, 0 new embeddings of 64 dimensions, 7 images of earlier" in capsys.readouterr().out
    assert (before.st_ino, before.st_mtime_ns) == (output.stat().st_ino, output.stat().st_mtime_ns)

    draw(photos / "aa.png", 20)
    draw(photos / "b/1.jpg", 21)
    (photos / "ä6.png").unlink()
    assert embed(output=output) == (0, ["aa.png", "b/1.jpg"])
    assert embed(output=f"fresh{suffix}") == (0, ["0.png", "aa.png", *READABLE[1:-1]])
    assert_close(read(output), read(tmp_path / f"fresh{suffix}"))

    (photos / "0.png").unlink()  # nothing to embed, and yet another output
    assert embed(output=output) == (0, [])
    assert "0.png" not in read(output)
    assert not left_behind(tmp_path)


def test_a_failure_while_finishing_keeps_all(embed, photos, tmp_path, capsys, monkeypatch):
    embed()
    before = (tmp_path / "out.npy").read_bytes()
    draw(photos / "new.png", 20)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file_store, "_write_raw", fail)
        assert embed() == (1, ["new.png"])
    assert "out.npy cannot be written: there is no room for it" in capsys.readouterr().err
    assert (tmp_path / "out.npy").read_bytes() == before
    assert left_behind(tmp_path) == {"out.npy.partial", "out.npy.partial.jsonl"}
    assert embed() == (0, [])
    assert len(read(tmp_path / "out.npy")) == 8
    assert not left_behind(tmp_path)


def test_embeddings_are_not_mixed(embed, repositories, photos, tmp_path, capsys, monkeypatch):
    """Of another model, precision or length: refused, and `--restart` replaces them."""
    model, processor = load.__wrapped__(repositories[FAMILIES[0]])
    with torch.no_grad():
        model.visual_projection.weight[0] *= 1.05
    for part in (model, processor):
        part.save_pretrained(tmp_path / "other")
    refused = [
        (["--model", tmp_path / "other"], f"another model ({repositories[FAMILIES[0]]}), not {tmp_path / 'other'}"),
        (["--dtype", "float16"], "dtype float32, not dtype float16"),
        (["--no-normalize"], "normalize True, not normalize False"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "finish", lambda *_: sys.exit(9))
        embed()
    for name in ("out.npy.partial", "out.npy"):
        before = {path: path.read_bytes() for path in tmp_path.glob("out.*")}
        for options, message in refused:
            assert embed(*options) == (1, [])
            assert f"error: {tmp_path / name} was made with {message}: pass --restart" in capsys.readouterr().err
            assert {path: path.read_bytes() for path in tmp_path.glob("out.*")} == before
        assert embed() == (0, [])
    assert embed("--model", tmp_path / "other", "--restart") == (0, READABLE)
    expected = embed_images(model, processor, [photos / path for path in READABLE])
    assert_close(read(tmp_path / "out.npy"), dict(zip(READABLE, expected.numpy(), strict=True)))


def test_what_is_not_ours_is_not_replaced(embed, tmp_path, capsys):
    output = tmp_path / "out.npy"
    output.write_text("mine")
    assert embed() == (1, [])
    assert f"error: {output} exists, without the out.npy.index.jsonl" in capsys.readouterr().err
    assert output.read_text() == "mine"
    with FileLock(tmp_path / ".other.npy.lock"):
        assert embed(output="other.npy") == (1, [])
    assert "another process is writing" in capsys.readouterr().err
    assert embed("--restart") == (0, READABLE)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_process_that_is_stopped(name, repositories, tmp_path, capfd):
    folder, output, images = tmp_path / "photos", tmp_path / "out.npy", 1500
    folder.mkdir()
    draw(folder / "0000.png", 0)
    for place in range(1, images):
        os.link(folder / "0000.png", folder / f"{place:04}.png")
    arguments = ["embed", folder, "--output", output, "--model", repositories[FAMILIES[0]], "--batch-size"]
    process = subprocess.Popen([sys.executable, "-m", "hf_clip", *map(str, arguments), "1"])
    rows = Path(f"{output}.partial")
    deadline = time.monotonic() + 600
    while not (rows.exists() and rows.stat().st_size > 10 * 256):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.Signals[name])
    assert process.wait(600) == (130 if name == "SIGINT" else -signal.SIGKILL)
    stopped = capfd.readouterr().err

    assert run(*arguments, "64") == 0
    going_on = count(r"going on: ([\d,]+) of 1,500 images", capfd.readouterr().err)
    assert 10 <= going_on < images
    if name == "SIGINT":
        assert count(rf"stopped: ([\d,]+) of 1,500 images are kept in {rows};", stopped) == pytest.approx(
            going_on, abs=1
        )
    found = read(output)
    assert len(found) == images
    assert np.ptp(np.array(list(found.values())), axis=0).max() < 1e-6
