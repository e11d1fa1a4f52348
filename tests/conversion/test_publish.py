import hashlib
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.commands import run_conversion as run
from support.local_hub import LocalHub

import hf_clip
from conversion.notebook import card_notebook
from hf_clip.openai.published import CHECKPOINTS
from hf_clip.parity.verify import FORMAT, PARITY_FILE
from model_cards.render import FOLDER as CARDS
from model_cards.render import load_data

TOKEN = "hf_NobodyMaySeeThis"
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# CLIP\n",
    "config.json": b"{}",
    "modeling_hf_clip.py": b"class HFCLIPModel: ...\n",
    "model.safetensors": bytes(range(256)) * 400,
}


@pytest.fixture
def hub(monkeypatch):
    with LocalHub(TOKEN) as hub:
        hub.use_in_process(monkeypatch)
        yield hub


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_folder(tmp_path / "clip")


def make_folder(folder: Path, sha256: str = "0123" * 16) -> Path:
    """A stand-in for a converted folder that passed."""
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return pass_verification(folder, sha256)


def pass_verification(folder: Path, sha256: str = "0123" * 16) -> Path:
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}
    unlisted = ("README.md", PARITY_FILE)
    parity = {
        "format": FORMAT,
        "checks": [],
        "files": {name: digest for name, digest in files.items() if name not in unlisted},
        "original": {"name": "ViT-B/32", "sha256": sha256},
    }
    (folder / PARITY_FILE).write_text(json.dumps(parity))
    return folder


def output(capsys: pytest.CaptureFixture) -> str:
    """All that was printed, which is never the token."""
    captured = capsys.readouterr()
    assert TOKEN not in captured.out + captured.err
    return captured.out + captured.err


def test_the_card_names_the_repository(hub, tmp_path):
    checkpoint = CHECKPOINTS["ViT-B/32"]
    folder = make_folder(tmp_path / "clip", checkpoint.sha256)
    card = (CARDS / f"{checkpoint.repo_name}.md").read_text()
    (folder / "README.md").write_text(card)
    assert run("publish", folder, "--repo", "org/other-name") == 0
    published = hub.files("org/other-name")
    organization = load_data()["organization"]
    named = card.replace(f'"{organization}/{checkpoint.repo_name}"', '"org/other-name"')
    assert published["README.md"].decode() == named != card
    assert published["notebook.ipynb"] == card_notebook(named)


def test_one_commit_holds_what_was_verified(hub, folder, capsys):
    for stray in (".cache/hidden", ".DS_Store", "__pycache__/modeling_hf_clip.pyc"):
        (folder / stray).parent.mkdir(exist_ok=True)
        (folder / stray).write_bytes(b"stray")
    assert run("publish", folder, "--repo", "org/clip") == 0
    first, commit = hub.repositories["org/clip"].branches["main"]
    published = {path: file.content for path, file in commit.files.items() if path not in first.files}
    assert published == FILES | {PARITY_FILE: (folder / PARITY_FILE).read_bytes()}
    assert commit.files["model.safetensors"].sha256
    assert commit.message == f"Convert ViT-B/32 (SHA-256 {'0123' * 16})"
    assert f"published: {hub.url}/org/clip\n" in output(capsys)
    assert hub.repositories["org/clip"].tags == {f"v{hf_clip.__version__}": commit}

    hub.requests.clear()
    assert run("publish", folder, "--repo", "org/clip") == 0
    assert len(hub.repositories["org/clip"].branches["main"]) == 2
    assert not [request for request in hub.requests if request.startswith("PUT")]


def test_a_dry_run_talks_to_nobody(hub, folder, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    (folder / "README.md").unlink()
    assert run("publish", folder, "--repo", "org/clip", "--dry-run", "--private", "--revision", "next") == 0
    printed = output(capsys)
    for line in (
        "warning: ",
        "org/clip (private if new), branch next",
        "102,400  model.safetensors",
        "Convert ViT-B/32",
    ):
        assert line in printed
    assert not hub.requests


def test_a_branch(hub, folder, capsys):
    assert run("publish", folder, "--repo", "org/clip") == 0
    (folder / "config.json").write_bytes(b'{"next": 1}')
    pass_verification(folder)
    assert run("publish", folder, "--repo", "org/clip", "--revision", "next/one") == 0
    assert f"{hub.url}/org/clip/tree/next/one\n" in output(capsys)
    assert hub.files("org/clip", "next/one")["config.json"] == b'{"next": 1}'
    assert hub.files("org/clip")["config.json"] == b"{}"
    pinned = hub.files("org/clip", f"v{hf_clip.__version__}")
    assert run("publish", folder, "--repo", "org/clip") == 0
    assert hub.files("org/clip") != pinned == hub.files("org/clip", f"v{hf_clip.__version__}"), "a tag stays"


def test_private_is_never_taken_for_public(hub, folder, capsys):
    assert run("publish", folder, "--repo", "org/private", "--private") == 0
    assert hub.repositories["org/private"].private
    assert run("publish", folder, "--repo", "org/public") == 0
    (folder / "config.json").write_bytes(b"secret")
    pass_verification(folder)
    assert run("publish", folder, "--repo", "org/public", "--private") == 1
    assert "org/public exists and is public" in output(capsys)
    assert hub.files("org/public")["config.json"] == b"{}"


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"token": "hf_another"}, "the Hub does not know this token"),
        ({"read_only": True}, "this token may not write there"),
        ({"captive": True}, "the server does not answer as a Hub does; check HF_ENDPOINT"),
        ({"fail_upload": True}, "the Hub refused (400: The storage is out of order)"),
        ({"drop_commit": 100}, "the connection failed"),
    ],
)
def test_refusals_change_nothing_and_can_be_tried_again(hub, folder, capsys, fault, sentence):
    vars(hub).update(fault)
    assert run("publish", folder, "--repo", "org/clip") == 1
    error = output(capsys).partition("error: ")[2]
    assert sentence in error
    assert error.count("\n") == 1
    assert all(len(commits) == 1 for repo in hub.repositories.values() for commits in repo.branches.values())

    hub.requests.clear()
    hub.token, hub.read_only, hub.captive = TOKEN, False, False
    assert run("publish", folder, "--repo", "org/clip") == 0
    assert hub.files("org/clip").keys() == FILES.keys() | {PARITY_FILE, ".gitattributes"}
    assert ("PUT" in str(hub.requests)) is ("drop_commit" not in fault)  # what had arrived is not sent again


def test_an_upload_that_broke_off_is_sent_again(hub, folder):
    hub.drop_upload = 1000
    assert run("publish", folder, "--repo", "org/clip") == 0
    assert len(hub.repositories["org/clip"].branches["main"]) == 2
    assert hub.files("org/clip")["model.safetensors"] == FILES["model.safetensors"]


@pytest.mark.parametrize(
    ("constant", "value", "sentence"),
    [
        ("ENDPOINT", "http://127.0.0.1:9", "the connection failed"),
        ("HF_HUB_OFFLINE", True, "HF_HUB_OFFLINE is set"),
        ("HF_TOKEN_PATH", "/nowhere", "you are not logged in to the Hub; run `hf auth login` or set HF_TOKEN"),
    ],
)
def test_no_way_to_the_hub(hub, folder, capsys, monkeypatch, constant, value, sentence):
    monkeypatch.setattr(constants, constant, value)
    if constant == "HF_TOKEN_PATH":
        monkeypatch.delenv("HF_TOKEN")
    assert run("publish", folder, "--repo", "org/clip") == 1
    assert sentence in output(capsys)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["{}", "--repo", "clip"], 1, "'clip' is no repository id: it must look like ORG/NAME"),
        (["{}", "--repo", "org/clip/32"], 1, "'org/clip/32' is no repository id"),
        (["{}", "--repo", "org/clip--32"], 1, "Cannot have -- or .. in repo_id: 'org/clip--32'"),
        (["{}/missing", "--repo", "org/clip"], 1, "there is no folder"),
        (["{}/..", "--repo", "org/clip"], 1, "is not verified"),
        (["{}"], 2, "give a folder and --repo ORG/NAME, or --all ORG"),
        (["{}", "--all", "org"], 2, "give a folder and --repo ORG/NAME, or --all ORG"),
        (["--all", "org/clip"], 1, "'org/clip/clip' is no repository id"),
    ],
)
def test_bad_arguments(hub, folder, capsys, arguments, status, sentence):
    assert run("publish", *[argument.format(folder) for argument in arguments]) == status
    assert sentence in output(capsys)
    assert not hub.requests


@pytest.mark.parametrize("change", ["changed config.json", "added notes.txt", "removed model.safetensors"])
def test_what_was_verified_or_nothing(hub, folder, capsys, change):
    what, name = change.split()
    (folder / name).unlink() if what == "removed" else (folder / name).write_text("new")
    assert run("publish", folder, "--repo", "org/clip") == 1
    assert f"is not as it was verified ({change})" in output(capsys)
    assert not hub.requests


def test_all_nine_or_none(hub, folder, tmp_path, capsys):
    rows = list(CHECKPOINTS.values())
    folders = [make_folder(tmp_path / row.repo_name, row.sha256) for row in rows]
    shutil.rmtree(folders[0])
    (folders[1] / PARITY_FILE).unlink()
    shutil.copy(folders[3] / PARITY_FILE, folders[2])
    arguments = ["publish", "--all", "org", "--root", tmp_path]
    assert run(*arguments) == 1
    printed = output(capsys)
    assert f"there is no folder {folders[0]}" in printed
    assert f"{folders[1]} is not verified" in printed
    assert f"{folders[2]} was not converted from the published {rows[2].name}" in printed
    assert not hub.requests

    for row, directory in zip(rows[:3], folders, strict=False):
        shutil.rmtree(directory, ignore_errors=True)
        make_folder(directory, row.sha256)
    assert run(*arguments, "--dry-run") == 0
    assert not hub.requests
    assert run(*arguments) == 0
    assert {f"org/{row.repo_name}" for row in rows} == hub.repositories.keys()
    assert output(capsys).count("published: ") == 9


def test_the_handler_goes_with_the_folder_if_asked_for(hub, folder):
    assert run("publish", folder, "--repo", "org/plain") == 0
    assert run("publish", folder, "--repo", "org/served", "--handler") == 0
    plain, served = (set(hub.repositories[name].branches["main"][-1].files) for name in ("org/plain", "org/served"))
    assert served - plain == {"handler.py", "requirements.txt"}
