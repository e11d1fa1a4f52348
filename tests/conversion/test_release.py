"""Releases of tiny checkpoints under published names, on a Hub on loopback."""

import json
import shutil
from pathlib import Path

import pytest
from support.commands import run_conversion
from support.local_hub import LocalHub
from support.originals import FAMILIES

from conversion import release as module
from hf_clip.openai.published import CHECKPOINTS, Checkpoint
from hf_clip.parity import verify as parity
from hf_clip.parity.checks import skipped
from hf_clip.utils.files import file_sha256

TOKEN = "hf_NobodyMaySeeThis"
NAMES = dict(zip(FAMILIES, ("ViT-B/32", "RN50"), strict=True))


@pytest.fixture
def release(archives, tmp_path, monkeypatch):
    """Run `release` on tiny files that stand in for the published ones."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for family, name in NAMES.items():
        row = CHECKPOINTS[name]
        shutil.copy(archives[family], cache / row.filename)
        tiny = Checkpoint(name, row.url, file_sha256(archives[family]), row.repo_name)
        monkeypatch.setitem(CHECKPOINTS, name, tiny)
    monkeypatch.setattr(parity, "check_golden", lambda *_: [])
    monkeypatch.setattr(parity, "check_tokenizer", lambda *_: skipped("tokenizer", "not here"))

    def release(*options: str) -> int:
        models = ",".join(NAMES.values())
        return run_conversion(
            "release", "--org", "org", "--models", models, "--root", tmp_path / "root", "--cache-dir", cache, *options
        )

    return release


@pytest.fixture
def hub(monkeypatch):
    with LocalHub(TOKEN) as hub:
        hub.use_in_process(monkeypatch)
        yield hub


def folders(root: Path) -> list[Path]:
    return [root / CHECKPOINTS[name].repo_name for name in NAMES.values()]


def test_a_release_converts_verifies_cards_and_publishes(release, hub, tmp_path, capsys):
    assert release() == 0
    for folder in folders(tmp_path / "root"):
        files = hub.files(f"org/{folder.name}")
        assert files["parity.json"] == (folder / "parity.json").read_bytes()
        card = files["README.md"].decode()
        assert "| tensors | passed |" in card
        assert f'"org/{folder.name}"' in card
    assert TOKEN not in "".join(capsys.readouterr())


@pytest.mark.slow
def test_a_second_run_does_nothing_again(release, hub, tmp_path, capsys, monkeypatch):
    assert release() == 0
    hub.requests.clear()
    capsys.readouterr()
    for step in ("convert", "verify", "publish"):
        monkeypatch.setattr(module, step, lambda *_, **__: pytest.fail("a step that was done is done again"))
    assert release() == 0
    printed = capsys.readouterr().out
    assert printed.count("is verified already") == printed.count("is published already") == 2
    assert {request.split()[0] for request in hub.requests} <= {"GET", "HEAD"}


def test_a_dry_run_sends_nothing_and_a_real_one_takes_its_folders(release, hub, capsys):
    assert release("--dry-run") == 0
    assert capsys.readouterr().out.count("dry run, nothing sent") == 2
    assert not hub.requests
    assert release() == 0
    assert capsys.readouterr().out.count("published: ") == 2


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(release, hub, capsys, monkeypatch):
    def stop(*_, **__):
        raise OSError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", stop)
        assert release() == 1
    assert "error: the power is gone" in capsys.readouterr().err
    assert release() == 0
    printed = capsys.readouterr().out
    assert printed.count("is verified already") == 1
    assert printed.count("published: ") == 2


@pytest.mark.slow
def test_a_new_card_is_published_without_verifying_again(release, hub, tmp_path, capsys, monkeypatch):
    assert release() == 0
    cards = tmp_path / "cards"
    shutil.copytree(module.CARDS, cards)
    for folder in folders(tmp_path / "root"):
        card = cards / f"{folder.name}.md"
        card.write_text(card.read_text() + "\nNew words.\n")
    monkeypatch.setattr(module, "CARDS", cards)
    monkeypatch.setattr(module, "verify", lambda *_, **__: pytest.fail("verified again"))
    assert release() == 0
    for folder in folders(tmp_path / "root"):
        card = hub.files(f"org/{folder.name}")["README.md"].decode()
        assert "New words." in card
        assert "| tensors | passed |" in card


@pytest.mark.slow
def test_a_folder_that_fails_is_not_published(release, hub, tmp_path, capsys):
    assert release("--dry-run") == 0
    folder = folders(tmp_path / "root")[0]
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["layer_norm_eps"] = 1e-6
    (folder / "config.json").write_text(json.dumps(config))
    assert release() == 1
    assert f"error: {folder} failed its verification (config" in capsys.readouterr().err
    assert not hub.repositories


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--models", "RN50,RN51"], 2, "RN51: choose from RN50"),
        (["--org", "org/name"], 1, "'org/name/clip' is no repository id"),
    ],
)
def test_bad_arguments(release, hub, tmp_path, capsys, options, status, message):
    assert release(*options) == status
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not hub.requests
    assert not (tmp_path / "root").exists()
