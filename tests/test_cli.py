import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import FAMILIES
from PIL import Image
from safetensors import safe_open

from hf_clip import HFCLIPModel, HFCLIPProcessor, cli, feature_store
from hf_clip.feature_store import FORMATS, FeatureStore, Record, StoreError
from hf_clip.zero_shot import ZeroShotClassifier, embed_images

LABELS = ["a cat", "two dogs", "a diagram"]
# sorted, as they come out; of several formats, modes and sizes
READABLE = ["0.png", "b/1.jpg", "b/c/2.JPG", "d 3.webp", "e,4.bmp", "f5.gif", "ä6.png"]
BROKEN = "broken.png"
SUFFIXES = list(FORMATS)


def run(*arguments: str | Path) -> int:
    """The command line's exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hf-clip", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0
    return 0


@pytest.fixture(autouse=True, scope="module")
def load_once():
    """Each model is read by the first run that asks for it: a tokenizer takes half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "load", cache(cli.load))
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images with a broken one, a text, and hidden files among them."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(READABLE):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(path, seed)
    (folder / BROKEN).write_text("no image")
    (folder / "notes.txt").write_text("no image either")
    (folder / ".hidden").mkdir()
    for name in ("._0.png", ".hidden/7.png"):
        shutil.copy(folder / "0.png", folder / name)
    return folder


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (40 + seed, 70 - seed, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert("P" if path.suffix == ".gif" else "RGB").save(path)


@pytest.fixture
def embed(repositories, photos, tmp_path, monkeypatch):
    """Run `embed` in batches of 2; gives its exit status and the images that went through the model."""
    append, embedded = FeatureStore.append, []

    def record(store, records, embeds):
        append(store, records, embeds)
        embedded.extend(record.path for record in records)

    monkeypatch.setattr(FeatureStore, "append", record)

    def embed(*options, output="out.npy", family=FAMILIES[0]):
        embedded.clear()
        arguments = ["--output", tmp_path / output, "--model", repositories[family], "--batch-size", 2]
        return run("embed", photos, *arguments, *options), list(embedded)

    return embed


@cache
def load(repository: Path) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    return HFCLIPModel.from_pretrained(repository).eval(), HFCLIPProcessor.from_pretrained(repository)


def read(output: Path) -> dict[str, np.ndarray]:
    """Embeddings by path, from a file of any format."""
    if output.suffix == ".safetensors":
        with safe_open(output, "np") as file:
            paths, embeds = json.loads(file.metadata()["paths"]), file.get_tensor("embeddings")
    elif output.suffix == ".npy":
        paths, embeds = output.with_suffix(".paths.txt").read_text("utf-8").splitlines(), np.load(output)
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(output)
        paths, embeds = table["path"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)
    assert embeds.dtype == np.float32
    assert paths == sorted(paths)
    return dict(zip(paths, embeds, strict=True))


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for path, embeds in expected.items():
        np.testing.assert_allclose(found[path], embeds, rtol=0, atol=1e-6)


def count(pattern: str, text: str) -> int:
    return int(re.search(pattern, text)[1].replace(",", ""))


def left_behind(folder: Path) -> set[str]:
    """Files that no finished run leaves."""
    return {path.name for path in folder.iterdir() if path.suffix in (".new", ".lock") or ".partial" in path.name}


def test_optimize(repositories, photos, tmp_path, family, monkeypatch):
    calls, optimize = [], HFCLIPModel.optimize_for_inference
    monkeypatch.setattr(
        HFCLIPModel, "optimize_for_inference", lambda self: calls.append(self.training) or optimize(self)
    )
    arguments = ["embed", photos, "-m", repositories[family], "-o"]
    assert run(*arguments, tmp_path / "exact.npy") == run(*arguments, tmp_path / "fast.npy", "--optimize") == 0
    assert calls == [False]
    assert_close(read(tmp_path / "fast.npy"), read(tmp_path / "exact.npy"))


# --- classify ---------------------------------------------------------------------------------------------------------


def test_classify_gives_what_the_classifier_gives(repositories, photos, family, capsys):
    arguments = ["classify", photos, "--labels", ",".join(LABELS), "--model", repositories[family], "--top-k", 2]
    assert run(*arguments, "--json", "--batch-size", 3) == 0
    out, err = capsys.readouterr()
    paths = [str(photos / path) for path in READABLE]
    expected = ZeroShotClassifier(*load(repositories[family]), LABELS)(paths, top_k=2)
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in found] == paths
    for line, answers in zip(found, expected, strict=True):
        assert [answer["label"] for answer in line["labels"]] == [answer["label"] for answer in answers]
        assert [answer["score"] for answer in line["labels"]] == pytest.approx([a["score"] for a in answers], abs=1e-6)
    assert f"skipped: can't read {photos / BROKEN}" in err
    assert f"1 of 8 images could not be read: {photos / BROKEN}" in err

    assert run(*arguments) == 0
    first = ", ".join(f"{answer['label']} {answer['score']:.1%}" for answer in expected[0])
    assert capsys.readouterr().out.splitlines()[0] == f"{paths[0]}: {first}"


def test_labels_and_templates(repositories, photos, tmp_path, capsys):
    """From files as from the command line."""
    (tmp_path / "labels.txt").write_text("\ufeffa cat\n\n two dogs \na diagram\n", "utf-8")
    (tmp_path / "templates.txt").write_text("a photo, {}\na drawing of {}.\n")
    templates = ["a photo, {}", "a drawing of {}."]
    outputs = []
    for options in (
        ["--labels", tmp_path / "labels.txt", "--templates", tmp_path / "templates.txt"],
        ["--labels", "a cat, two dogs,a diagram", "--templates", templates[0], "--templates", templates[1]],
    ):
        assert run("classify", photos / "0.png", "--json", "--model", repositories[FAMILIES[0]], *options) == 0
        outputs.append(json.loads(capsys.readouterr().out)["labels"])
    [expected] = ZeroShotClassifier(*load(repositories[FAMILIES[0]]), LABELS, templates)(photos / "0.png")
    assert outputs == [expected, expected]


def test_images_by_pattern_and_from_stdin(repositories, photos, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    options = ["--labels", "a,b", "--model", repositories[FAMILIES[0]], "--json"]
    monkeypatch.setattr("sys.stdin", io.StringIO("b/1.jpg\n\n0.png\n"))
    for images, expected in (
        (["**/*.[jJ][pP]*", "0.png"], ["b/1.jpg", "b/c/2.JPG", "0.png"]),
        (["b", "-"], ["b/1.jpg", "b/c/2.JPG", "b/1.jpg", "0.png"]),
    ):
        assert run("classify", *images, *options) == 0
        out, err = capsys.readouterr()
        assert [json.loads(line)["image"] for line in out.splitlines()] == expected
        assert "skipped" not in err


def test_plot(repositories, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "MAX_DRAWN", 3)
    shutil.copy(photos / "0.png", photos / "$0_$.png")  # no formula
    picture = tmp_path / "out.png"
    arguments = ["classify", photos, "--labels", "a cat,$x_$", "--model", repositories[FAMILIES[0]], "--plot", picture]
    assert run(*arguments) == 0
    assert "the first 3 of 8 images" in capsys.readouterr().err
    with Image.open(picture) as image:
        assert image.width == 3 * 360  # three in a row
        assert len(image.getcolors(image.width * image.height)) > 1000
        bars = np.asarray(image.convert("RGB")) == (137, 164, 206)  # score_plot.BAR, as transparent as it is drawn
        assert bars.all(-1).sum() > 10_000
    assert not left_behind(tmp_path)


def test_strict_stops(repositories, photos, embed, tmp_path, capsys):
    arguments = ["classify", photos, "--labels", "a,b", "--model", repositories[FAMILIES[0]]]
    assert run(*arguments, "--strict") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: can't read {photos / BROKEN}")
    assert embed("--strict")[0] == 1
    assert f"error: can't read {photos / BROKEN}" in capsys.readouterr().err
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("classify PHOTOS -l a,b -m nowhere/to/be", "there is no folder nowhere/to/be"),
        ("classify PHOTOS -l a,b -m PHOTOS", "can't load PHOTOS: "),
        ("classify PHOTOS -l labels.txt -m MODEL", "there is no file labels.txt"),
        ("classify PHOTOS -l a,a -m MODEL", "labels are given twice: a"),
        ("classify PHOTOS -l a,b -m MODEL -t {}{", "needs {}"),
        ("classify PHOTOS -l a,b -m MODEL -t sentence", "there is no file sentence, and as a template it lacks {}"),
        ("classify PHOTOS -l a,b -m MODEL --device nonsense", "can't compute on nonsense"),
        ("classify PHOTOS/*.tiff -l a,b -m MODEL", "no file matches PHOTOS/*.tiff"),
        ("classify EMPTY -l a,b -m MODEL", "there are no images in EMPTY"),
        ("classify PHOTOS/broken.png gone.png -l a,b -m MODEL", "2 of 2 images could not be read: PHOTOS/broken.png"),
        ("classify PHOTOS -l a,b -m MODEL --plot out.docx", "out.docx should end in"),
        ("classify PHOTOS -l a,b -m MODEL --plot no/out.png", "there is no folder no"),
        ("classify PHOTOS -l a,b -m MODEL --plot out.png", "--plot needs matplotlib: pip install matplotlib"),
        ("embed PHOTOS/0.png -m MODEL -o out.npy", "there is no folder PHOTOS/0.png"),
        ("embed EMPTY -m MODEL -o out.npy", "there are no images in EMPTY"),
        ("embed PHOTOS -m MODEL -o out.csv", "out.csv should end in .safetensors, .npy, .parquet"),
        ("embed PHOTOS -m MODEL -o EMPTY.npy", "it is a folder"),
        ("embed PHOTOS -m MODEL -o PHOTOS/0.png/out.npy", "can't write PHOTOS/0.png/out.npy"),
        ("embed PHOTOS -m MODEL -o out.parquet", "out.parquet needs pyarrow: pip install pyarrow"),
        ("embed PHOTOS/broken -m MODEL -o out.npy", "1 of 1 images could not be read: PHOTOS/broken/x.png"),
    ],
)
def test_errors_are_one_sentence(command, message, repositories, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package in ("matplotlib", "pyarrow"):
        if f"needs {package}" in message:
            monkeypatch.setitem(sys.modules, package, None)
    for folder in ("EMPTY", "EMPTY.npy"):
        Path(folder).mkdir()
    photos.rename("PHOTOS")
    Path("PHOTOS/broken").mkdir()
    shutil.copy("PHOTOS/broken.png", "PHOTOS/broken/x.png")
    Path("MODEL").symlink_to(repositories[FAMILIES[0]])
    before = set(os.listdir())
    assert run(*command.split()) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert set(os.listdir()) == before


# --- embed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_embed_writes_what_embed_images_gives(repositories, photos, embed, family, suffix, tmp_path, capsys):
    normalize = suffix != ".npy"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    options = [] if normalize else ["--no-normalize"]
    assert embed(*options, output=f"new/out{suffix}", family=family)[0] == 0
    out, err = capsys.readouterr()
    assert out == f"done: {tmp_path / 'new' / 'out'}{suffix}, 7 embeddings of 64 dimensions\n"
    assert f"1 of 8 images could not be read: {photos / BROKEN}" in err
    images = [photos / path for path in READABLE]
    expected = embed_images(*load(repositories[family]), images, normalize=normalize)
    assert_close(read(tmp_path / "new" / f"out{suffix}"), dict(zip(READABLE, expected.numpy(), strict=True)))
    assert not left_behind(tmp_path / "new")


def test_an_interrupted_run_goes_on(embed, tmp_path, capsys, monkeypatch):
    assert embed(output="whole.npy") == (0, READABLE)
    assert "going on" not in capsys.readouterr().err
    append = FeatureStore.append

    def stop_at_the_second(store, records, embeds):
        if records[0].path == READABLE[2]:
            raise KeyboardInterrupt
        append(store, records, embeds)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "append", stop_at_the_second)
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


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_finished_output_follows_its_folder(embed, photos, suffix, tmp_path, capsys):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"out{suffix}"
    embed(output=output)
    before = output.stat()
    capsys.readouterr()
    assert embed(output=output) == (0, [])
    assert capsys.readouterr().out == f"{output} is complete: 7 images, none of them new\n"
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
        patch.setattr(feature_store, "_write_raw", fail)
        assert embed() == (1, ["new.png"])
    assert "error: [Errno 28] No space left on device" in capsys.readouterr().err
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
        patch.setattr(FeatureStore, "finish", lambda *_: sys.exit(9))
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


# --- the store --------------------------------------------------------------------------------------------------------

SETTINGS = {"model": "m", "dtype": "float32", "normalize": True, "dim": 3, "probe": [1.0, 0.0, 0.0]}
RECORDS = [Record(f"{place}\udcff\n.png", place, 10**18 + place) for place in range(5)]
ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


def store(folder: Path, name: str = "out.npy", **changed) -> FeatureStore:
    return FeatureStore(folder / name, {**SETTINGS, **changed}, tolerance=1e-3)


def test_a_torn_partial_keeps_what_is_whole(tmp_path):
    """Cut at any byte of either file, as by a process that was killed or a disk that was full."""
    with store(tmp_path) as whole:
        whole.append(RECORDS[:2], ROWS[:2])
        whole.append(RECORDS[2:4], ROWS[2:4])
    contents = {path: path.read_bytes() for path in tmp_path.iterdir()}
    index, rows = tmp_path / "out.npy.partial.jsonl", tmp_path / "out.npy.partial"
    ends = np.cumsum([len(line) for line in contents[index].splitlines(keepends=True)])
    for torn in (index, rows):
        for length in range(len(contents[torn]) + 1):
            for path, content in contents.items():
                path.write_bytes(content[:length] if path == torn else content)
            left = max(0, (ends <= length).sum() - 1) if torn == index else length // 12
            with store(tmp_path) as resumed:
                assert [record in resumed for record in RECORDS] == [place < left for place in range(5)]
                resumed.append(RECORDS[left:], ROWS[left:])
                if length % 64 == 0:
                    resumed.finish(RECORDS)
                    assert np.array_equal(np.load(tmp_path / "out.npy"), ROWS)
                    (tmp_path / "out.npy").unlink()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_written_in_the_order_asked_for(suffix, tmp_path, monkeypatch):
    """In several chunks, of many runs; and names of files may be no Unicode."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(feature_store, "CHUNK_ROWS", 2)
    output = f"out{suffix}"
    for place in (3, 0, 4):
        with store(tmp_path, output) as opened:
            opened.append(RECORDS[place : place + 1], ROWS[place : place + 1])
            opened.finish([record for record in RECORDS if record in opened])
    with store(tmp_path, output) as opened:
        opened.append(RECORDS[1:3], ROWS[1:3])
        opened.finish(RECORDS)
        assert opened.holds(RECORDS) is False  # it does once it is opened anew
    with store(tmp_path, output) as opened:
        assert opened.holds(RECORDS)
    found = read(tmp_path / output)
    assert np.array_equal(np.array(list(found.values())), ROWS)
    path = RECORDS[0].path if suffix == ".safetensors" else r"0\udcff\n.png"
    assert next(iter(found)) == path


def test_an_output_that_was_written_over_is_noticed(tmp_path):
    with store(tmp_path) as opened:
        opened.append(RECORDS[:4], ROWS[:4])
        opened.finish(RECORDS[:4])
    np.save(tmp_path / "out.npy", ROWS)
    with store(tmp_path) as opened, pytest.raises(StoreError, match=r"is not what out\.npy\.index\.jsonl tells"):
        opened.append(RECORDS[4:], ROWS[4:])
    assert not left_behind(tmp_path)


def test_safetensors_headers_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "MAX_SAFETENSORS_HEADER", 100)
    feature_store.check_output(tmp_path / "out.npy", ["a.png"] * 100)
    with pytest.raises(StoreError, match="the paths of 100 images are too long for safetensors"):
        feature_store.check_output(tmp_path / "out.safetensors", ["a.png"] * 100)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped(number, repositories, tmp_path, capfd):
    folder, output, images = tmp_path / "photos", tmp_path / "out.npy", 1500
    folder.mkdir()
    draw(folder / "0000.png", 0)
    for place in range(1, images):
        os.link(folder / "0000.png", folder / f"{place:04}.png")
    arguments = ["embed", folder, "--output", output, "--model", repositories[FAMILIES[0]], "--batch-size"]
    # a shell's background jobs ignore SIGINT, and so would their children
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([sys.executable, "-m", "hf_clip", *map(str, arguments), "1"])
    signal.signal(signal.SIGINT, handler)
    rows = Path(f"{output}.partial")
    deadline = time.monotonic() + 120
    while not (rows.exists() and rows.stat().st_size > 10 * 256):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    stopped = capfd.readouterr().err

    assert run(*arguments, "64") == 0
    going_on = count(r"going on: ([\d,]+) of 1,500 images", capfd.readouterr().err)
    assert 10 <= going_on < images
    if number == signal.SIGINT:
        assert count(rf"stopped: ([\d,]+) of 1,500 images are kept in {rows};", stopped) == pytest.approx(
            going_on, abs=1
        )
    found = read(output)
    assert len(found) == images
    assert np.ptp(np.array(list(found.values())), axis=0).max() < 1e-6
