"""The collection and the Space, on a Hub on loopback."""

import pytest
from support.commands import run_conversion as run
from support.local_hub import LocalHub, Repository

from conversion.collect import DESCRIPTION, SPACE
from hf_clip.openai.published import CHECKPOINTS

MODELS = [f"org/{checkpoint.repo_name}" for checkpoint in CHECKPOINTS.values()]


@pytest.fixture
def hub(monkeypatch):
    """A Hub that holds the nine models."""
    with LocalHub("hf_NobodyMaySeeThis") as hub:
        hub.use_in_process(monkeypatch)
        for model in MODELS:
            hub.repositories[model] = Repository(private=False)
        yield hub


def items(hub):
    (collection,) = hub.collections.values()
    return [(item["type"], item["id"]) for item in collection["items"]]


def test_models_space_and_paper_are_collected_once(hub, capsys):
    assert run("collect", "--org", "org") == 0
    assert items(hub) == [*(("model", model) for model in MODELS), ("paper", "2103.00020")]
    (collection,) = hub.collections.values()
    assert "151 M parameters, 224 pixels, 63.3 % on ImageNet" in str(collection["items"])
    assert len(DESCRIPTION) <= 150  # the Hub's limit
    assert f"collected: {hub.url}/collections/org/openai-s-clip-bit-for-bit" in capsys.readouterr().out
    hub.requests.clear()
    assert run("collect", "--org", "org", "--space", "clip") == 0
    assert items(hub)[-1] == ("space", "org/clip")
    assert len(items(hub)) == len(set(items(hub))) == 11
    assert sum(request.endswith("/items") for request in hub.requests) == 1


def test_the_space_runs_a_published_model_and_names_all(hub):
    assert run("collect", "--org", "org", "--space", "clip") == 0
    files = hub.files("spaces/org/clip")
    assert files.keys() == {".gitattributes", *(path.name for path in SPACE.iterdir() if path.is_file())}
    assert files["app.py"] == (SPACE / "app.py").read_bytes()
    card, template = (
        text.split("models:\n") for text in (files["README.md"].decode(), (SPACE / "README.md").read_text())
    )
    assert card[0] == template[0]
    listed, rest = card[1].split("---\n", 1)
    assert listed == "".join(f"  - {model}\n" for model in MODELS)
    assert rest == template[1].split("---\n", 1)[1]
    assert hub.variables == {"spaces/org/clip": {"MODEL": "org/clip-vit-base-patch32"}}


def test_a_dry_run_talks_to_nobody(hub, capsys):
    assert run("collect", "--org", "org", "--space", "clip", "--private", "--dry-run") == 0
    printed = capsys.readouterr().out
    for line in (
        "org/clip (private if new), branch main",
        "app.py",
        "variable MODEL of the Space: org/clip-vit-base-patch32",
        "of org (private if new):",
        "   model  org/clip-rn50: RN50: 102 M parameters",
        "   paper  2103.00020: Learning Transferable",
        "dry run, nothing sent",
    ):
        assert line in printed
    assert not hub.requests


def test_what_is_not_published_is_named(hub, capsys):
    del hub.repositories[MODELS[3]]
    assert run("collect", "--org", "org") == 1
    error = capsys.readouterr().err
    assert f"the model {MODELS[3]} was not added to org/openai-s-clip" in error
    assert "404" in error
    assert error.count("\n") == 1


def test_private_is_never_taken_for_public(hub, capsys):
    assert run("collect", "--org", "org") == 0
    assert run("collect", "--org", "org", "--private") == 1
    assert "exists and is public" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--org", "org/name"], "'org/name/clip' is no repository id"),
        (["--org", "org", "--space", "a b"], "org/a b"),
    ],
)
def test_bad_arguments(hub, capsys, options, sentence):
    assert run("collect", *options) == 1
    assert sentence in capsys.readouterr().err
    assert not hub.requests
