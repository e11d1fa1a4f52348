"""What holds for every verb: quick help, one line for an error, and an exit status."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import typer
from support.commands import run
from support.originals import FAMILIES
from support.photos import BROKEN

import hf_clip
from hf_clip.cli import app, common
from hf_clip.openai.errors import DownloadError
from hf_clip.zero_shot.prompts import TEMPLATE

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "torchvision", "numpy", "PIL", "huggingface_hub", "safetensors", "matplotlib"}
HELP = """
import sys
from hf_clip_command import main
try:
    main()
finally:
    print("imported:", *sorted(set({heavy}) & sys.modules.keys()), file=sys.stderr)
"""


def show_help(module: str, *arguments: str) -> subprocess.CompletedProcess:
    code = HELP.format(heavy=sorted(HEAVY)).replace("hf_clip_command", module)
    command = [sys.executable, "-c", code, *arguments, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("verb", ["", *app.VERBS])
def test_help_imports_nothing_heavy(verb):
    shown = show_help("hf_clip_command", *filter(None, [verb]))
    assert shown.stderr == "imported:\n"
    if verb:
        assert f"Example: hf-clip {verb}" in shown.stdout
    else:
        assert all(name in shown.stdout for name in app.VERBS)


@pytest.mark.parametrize("verb", ["", "release", "publish", "record-digests"])
def test_help_of_the_release_scripts_imports_nothing_heavy(verb):
    assert show_help("conversion.__main__", *filter(None, [verb])).stderr == "imported:\n"


def test_the_version_is_shown_at_once():
    code = HELP.format(heavy=sorted(HEAVY))
    done = subprocess.run([sys.executable, "-c", code, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith(f"hf-clip {hf_clip.__version__}, transformers {transformers.__version__}, torch ")
    assert done.stderr == "imported:\n"


def test_shells_can_complete():
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", HELP.format(heavy=sorted(HEAVY)), "--show-completion", "bash"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert "COMPLETE" in done.stdout
    assert done.stderr == "imported:\n"


@pytest.mark.parametrize("verb", app.VERBS)
def test_help_cuts_no_name_in_a_narrow_terminal(verb):
    code = f"import sys; sys.argv = ['hf-clip', {verb!r}, '--help']; from hf_clip_command import main; main()"
    narrow = {**os.environ, "COLUMNS": "40"}
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=narrow).stdout
    assert "…" not in shown
    assert "--help" in shown
    names = [name for param in typer.main.get_command(app.app).commands[verb].params for name in param.opts]
    assert all(name in shown for name in names if name.startswith("--"))


def test_help_names_the_default_template():
    assert TEMPLATE in " ".join(show_help("hf_clip_command", "classify").stdout.replace("│", " ").split())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("labels are empty: give one"), "labels are empty: give one"),
        (FileNotFoundError("there is no x.pt"), "there is no x.pt"),
        (DownloadError("no network"), "no network"),
        (ImportError("needs y"), "needs y"),
        (TypeError(), "TypeError"),
        (torch.OutOfMemoryError("CUDA"), "the memory of the GPU is too small: choose a smaller --batch-size"),
    ],
)
def test_an_expected_error_is_one_line_and_status_1(error, message, capsys, monkeypatch):
    def fail():
        raise error

    command = typer.Typer()
    command.command()(fail)
    monkeypatch.setattr("sys.argv", ["hf-clip"])
    with pytest.raises(SystemExit) as stop:
        app.run(command)
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail():
        raise RuntimeError("a bug")

    command = typer.Typer(pretty_exceptions_enable=False)
    command.command()(fail)
    monkeypatch.setattr("sys.argv", ["hf-clip"])
    with pytest.raises(RuntimeError, match="a bug"):
        app.run(command)


@pytest.mark.parametrize("arguments", [["nonsense"], ["classify", "a.png"], ["embed", "--nonsense"]])
def test_wrong_usage_is_status_2(arguments, capsys):
    assert run(*arguments) == 2
    assert "Error" in capsys.readouterr().err


def test_many_unreadable_images_are_counted(capsys):
    skipped = common.Skipped()
    for place in range(common.MAX_NAMED + 2):
        skipped.add(f"{place}.png", ValueError("no image\nat all"))
    skipped.summarize(read=3)
    error = capsys.readouterr().err
    assert "skipped: no image\n" in error
    assert "12 of 15 images could not be read: 0.png, 1.png" in error
    assert error.endswith("9.png and 2 more\n")


def test_strict_stops(repositories, photos, embed, tmp_path, capsys):
    arguments = ["classify", photos, "--labels", "a,b", "--model", repositories[FAMILIES[0]]]
    assert run(*arguments, "--strict") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: cannot read {photos / BROKEN}")
    assert embed("--strict")[0] == 1
    assert f"error: cannot read {BROKEN}" in capsys.readouterr().err
    assert not (tmp_path / "out.npy").exists()


def test_verify_names_what_measures_the_published_accuracies(repositories, capsys, monkeypatch):
    monkeypatch.setattr("hf_clip.parity.verify.verify", lambda *_, **__: [])
    folder = repositories[FAMILIES[0]]
    assert run("verify", folder, "--original", "RN50") == 0
    assert (
        f"hf-clip evaluate benchmark imagenetv2 vtab/dtd --model {folder} --published RN50" in capsys.readouterr().out
    )
    assert run("verify", folder, "--original", "other.pt") == 0
    assert "benchmark" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "classify PHOTOS -l a,b -m PHOTOS/0.png",
            "0.png is neither a TorchScript archive, nor a file of torch.save",
        ),
        ("verify ARCHIVE", "is a file, not a converted folder: make one with hf-clip convert"),
        ("to-openai ARCHIVE --output out.pt", "is a file, not a converted folder"),
        ("classify PHOTOS -l a,b -m nowhere/to/be", "there is no file or folder nowhere/to/be"),
        ("classify PHOTOS -l a,b -m PHOTOS", "cannot load PHOTOS: "),
        ("classify PHOTOS -l labels.txt -m MODEL", "there is no file labels.txt"),
        ("classify PHOTOS -l gone.safetensors -m MODEL", "there is no file gone.safetensors"),
        ("serve MODEL -l gone.safetensors", "there is no file gone.safetensors"),
        ("serve MODEL -l EMPTY.safetensors -t {}", "EMPTY.safetensors has its own templates: leave --templates off"),
        ("classify PHOTOS -l a,a -m MODEL", "labels are given twice: a"),
        ("classify PHOTOS/0.png -l red green -m MODEL", 'if it is a label, write --labels "red,green" with a comma'),
        ("classify PHOTOS -l a,b -m MODEL -t {}{", "needs {}"),
        ("classify PHOTOS -l a,b -m MODEL -t sentence", "there is no file sentence, and as a template it lacks {}"),
        ("classify PHOTOS -l a,b -m MODEL --device nonsense", "cannot compute on nonsense"),
        ("classify PHOTOS/*.tiff -l a,b -m MODEL", "no file matches PHOTOS/*.tiff"),
        ("classify EMPTY -l a,b -m MODEL", "there are no images in EMPTY"),
        ("classify PHOTOS/broken.png gone.png -l a,b -m MODEL", "2 of 2 images could not be read: PHOTOS/broken.png"),
        ("classify PHOTOS -l a,b -m MODEL --plot out.docx", "out.docx should end in"),
        ("classify PHOTOS -l a,b -m MODEL --plot no/out.png", "there is no folder no"),
        (
            "classify PHOTOS -l a,b -m MODEL --plot out.png",
            '--plot needs matplotlib: pip install "hf_clip[plot] @ git+https://github.com/hf-clip/hf_clip"',
        ),
        ("embed PHOTOS/nothing -m MODEL -o out.npy", "there is no PHOTOS/nothing: give a folder"),
        ("embed EMPTY -m MODEL -o out.npy", "there are no images in EMPTY"),
        ("embed PHOTOS -m MODEL -o out.csv", "out.csv has the suffix .csv: use .safetensors, .npy, .parquet"),
        ("embed PHOTOS -m MODEL -o EMPTY.npy", "it is a folder"),
        ("embed PHOTOS -m MODEL -o PHOTOS/0.png/out.npy", "cannot write PHOTOS/0.png/out.npy"),
        (
            "embed PHOTOS -m MODEL -o out.parquet",
            'out.parquet needs pyarrow: pip install "hf_clip[parquet] @ git+https://github.com/hf-clip/hf_clip"',
        ),
        (
            "embed PHOTOS/broken -m MODEL -o out.npy",
            "no image of PHOTOS/broken could be embedded: 1 of 1 images could not be read (x.png)",
        ),
    ],
)
def test_errors_are_one_sentence(command, message, archives, repositories, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package in ("matplotlib", "pyarrow"):
        if f"needs {package}" in message:
            monkeypatch.setitem(sys.modules, package, None)
    for folder in ("EMPTY", "EMPTY.npy"):
        Path(folder).mkdir()
    Path("EMPTY.safetensors").touch()
    photos.rename("PHOTOS")
    Path("PHOTOS/broken").mkdir()
    shutil.copy("PHOTOS/broken.png", "PHOTOS/broken/x.png")
    Path("MODEL").symlink_to(repositories[FAMILIES[0]])
    Path("ARCHIVE").symlink_to(archives[FAMILIES[0]])
    before = set(os.listdir())
    assert run(*command.split()) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert set(os.listdir()) == before
