import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_clip.utils import files
from hf_clip.utils.files import check_output, exit_on_signals, new_directory, replacing


def write(path, mark, text, error=None):
    with replacing(path, mark) as work:
        assert work.name == f".features.npy.{mark or os.getpid()}"
        work.write_text(text)
        if error:
            raise error


@pytest.mark.parametrize("mark", ["", "new"])
def test_whole_or_not_at_all(tmp_path, mark):
    path = tmp_path / "features.npy"
    for text in ("old", "newer"):
        write(path, mark, text)
        with pytest.raises(KeyboardInterrupt):
            write(path, mark, "half", KeyboardInterrupt())
        assert path.read_text() == text
        assert list(tmp_path.iterdir()) == [path]


def test_a_new_directory_shares_its_folders_too(tmp_path):
    with new_directory(tmp_path / "out") as work:
        (work / "inner").mkdir(0o700)
        (work / "inner" / "file").touch(0o600)
    assert (tmp_path / "out" / "inner" / "file").stat().st_mode & 0o044
    assert (tmp_path / "out" / "inner").stat().st_mode & 0o111 == 0o111


# --- killed and crowded -----------------------------------------------------------------------------------------------

WRITE = """
import sys, time
from pathlib import Path
from hf_clip.utils import files
from hf_clip.utils.files import exit_on_signals, new_directory, replacing

exit_on_signals()
kind, path = sys.argv[1], Path(sys.argv[2])
with (new_directory if kind == "folder" else replacing)(path) as work:
    (work / "part" if kind == "folder" else work).write_bytes(bytes(1000))
    print("writing", flush=True)
    time.sleep(60)
"""


def started(kind: str, path: Path) -> subprocess.Popen:
    without_torch = os.environ | {"HF_CLIP_LAZY": "1"}
    command = [sys.executable, "-c", WRITE, kind, path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=without_torch)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.fixture(params=["folder", "file"])
def kind(request):
    return request.param


def write_again(kind, path):
    with (new_directory if kind == "folder" else replacing)(path) as work:
        (work / "part" if kind == "folder" else work).write_text("new")
    return (path / "part" if kind == "folder" else path).read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_leave_nothing_behind(kind, name, tmp_path, interruptible):
    process, number = started(kind, tmp_path / "out"), signal.Signals[name]
    process.send_signal(number)
    assert process.wait() == (128 + number if number != signal.SIGINT else -number)
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_removes_what_a_killed_one_left(kind, tmp_path):
    process = started(kind, tmp_path / "out")
    process.kill()
    process.wait()
    assert len(list(tmp_path.iterdir())) == 1
    assert write_again(kind, tmp_path / "out") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_that_is_alive_keeps_its_files(kind, tmp_path):
    process = started(kind, tmp_path / "out")
    assert write_again(kind, tmp_path / "out") == "new"
    assert len(list(tmp_path.iterdir())) == 2
    process.terminate()
    process.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_process_of_another_container_keeps_its_folder(tmp_path, monkeypatch):
    """There its process id is unknown; the lock tells."""
    process = started("folder", tmp_path / "out")
    monkeypatch.setattr(files, "_is_alive", lambda number: False)
    write_again("folder", tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 2
    process.kill()
    process.wait()
    write_again("folder", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("old", ["folder", "file"])
@pytest.mark.parametrize("exchanges", [True, False])
def test_an_output_is_replaced_in_one_step(old, exchanges, tmp_path, monkeypatch):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    elif sys.platform != "linux":
        pytest.skip("only Linux exchanges names")
    path = tmp_path / "out"
    if old == "folder":
        path.mkdir()
        (path / "old").touch()
    else:
        path.touch()
    moved = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: (moved.append(self), rename(self, target))[1])
    assert write_again("folder", path) == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert [entry.name for entry in path.iterdir()] == ["part"]
    assert len(moved) == (0 if exchanges else 2)


def test_an_output_lost_between_two_renames_comes_back(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    lost = tmp_path / f".out.{dead.pid}-abc.old"
    lost.mkdir()
    (lost / "part").write_text("old")
    (tmp_path / f".out.{dead.pid}-abc").mkdir()
    with new_directory(tmp_path / "out"):
        assert (tmp_path / "out" / "part").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_stay_where_no_lock_tells_of_their_process(kind, tmp_path, monkeypatch):
    """As on Windows, which exchanges no names either."""
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    (tmp_path / ".out.99999999-abc").mkdir()
    for _ in range(2):
        assert write_again(kind, tmp_path / "out") == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.99999999-abc"}


def test_signals_that_a_system_lacks_are_left_out(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    exit_on_signals()
    assert handlers.keys() == {signal.SIGTERM}


def test_files_of_others_stay(kind, tmp_path):
    names = [".out.bak", ".out.12x", ".outer.99999999", "out.99999999", ".out.99999999-a.new.old", ".out"]
    for name in names:
        (tmp_path / name).touch()
    write_again(kind, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "out"])


FULL = """
import resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from hf_clip.utils.files import new_directory, replacing

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path, tensors = Path(sys.argv[1]), {"a": torch.zeros(100_000)}
def folder(write):
    with new_directory(path) as work: write(work / "x")
def file(write):
    with replacing(path) as work: write(work)
def plain(to): to.write_bytes(bytes(200_000))
WRITE = [lambda to: save_file(tensors, to), lambda to: torch.save(tensors, to), plain]
for target in (folder, file):
    for write in WRITE:
        try:
            target(write)
        except OSError as error:
            print(error)
"""


def test_a_full_disk_is_named(tmp_path):
    out = subprocess.run([sys.executable, "-c", FULL, tmp_path / "out"], capture_output=True, text=True, check=True)
    assert out.stdout.count(f"{tmp_path}/out cannot be written: there is no room for it (") == 6, out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "force", "error", "message"),
    [
        ("old.json", False, FileExistsError, r"old\.json exists: choose another output, or pass --force"),
        ("new.txt", True, ValueError, r"new\.txt should end in \.json, \.npz"),
        ("folder.json", True, IsADirectoryError, r"folder\.json is a folder"),
        ("old.json/new.json", True, NotADirectoryError, r"old\.json is not a folder"),
    ],
)
def test_one_rule_for_outputs(name, force, error, message, tmp_path):
    (tmp_path / "old.json").touch()
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(error, match=message):
        check_output(tmp_path / name, force, [".json", ".npz"])
    check_output(tmp_path / "old.json", True, [".json"])
    check_output(tmp_path / "a" / "new.JSON", False, [".json"])
