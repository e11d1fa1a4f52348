import json
import signal
import subprocess
import sys

import pytest
import torch
from cli.test_app import show_help
from support.commands import run
from support.data_sets import captioned_wds, captions, class_folders, labeled_wds, write_csv
from support.threads import as_many_threads

from hf_clip.cli.evaluate import COMMANDS
from hf_clip.evaluation import embeddings, suite
from hf_clip.evaluation.results import Result


@pytest.fixture
def photos(tmp_path):
    folder = class_folders(tmp_path / "photos")
    write_csv(folder / "pairs.csv", captions(folder))
    return folder


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_imports_nothing_heavy(verb):
    shown = show_help("hf_clip_command", "evaluate", verb)
    assert shown.stderr == "imported:\n"
    assert f"Example: hf-clip evaluate {verb}" in shown.stdout


def test_several_models_side_by_side(repositories, photos, tmp_path, capsys):
    models = [word for path in repositories.values() for word in ("--model", path)]
    arguments = ["evaluate", "zero-shot", photos, *models, "--output", tmp_path / "out.json", "--store", tmp_path / "s"]
    assert run(*arguments, "--plot", tmp_path / "out.png") == 0
    printed = capsys.readouterr().out
    assert "95 %" in printed
    assert "mean_per_class_recall" in printed
    for path in repositories.values():
        content = json.loads((tmp_path / f"out-{path.name}.json").read_text())
        assert content["task"] == "zeroshot_classification"
        assert content["dataset"] == "photos"
        assert (tmp_path / f"out-{path.name}.png").read_bytes().startswith(b"\x89PNG")
    assert run(*arguments, "--resume") == 0
    assert capsys.readouterr().out == printed  # intervals, too


def test_a_probe_needs_scikit_learn(repositories, photos, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    arguments = ["evaluate", "probe", photos, photos, "--model", repositories["tiny ViT"]]
    assert run(*arguments) == 1
    assert "pip install" in capsys.readouterr().err


def test_retrieval_and_probe_print_json(repositories, photos, tmp_path, capsys):
    model = ["--model", repositories["tiny ViT"], "--json"]
    assert run("evaluate", "retrieval", photos / "pairs.csv", "--k", "1,100", *model) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["image_retrieval_recall@100"] == 1
    assert found["dataset"] == "pairs"
    plot = tmp_path / "probe.svg"
    assert run("evaluate", "probe", photos, photos, *model, "--plot", plot) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["lp_acc1"] == 1
    assert "<svg" in plot.read_text()


def test_resume_reads_what_is_there_and_refuses_other_models(repositories, photos, tmp_path, capsys):
    output = tmp_path / "out.json"
    arguments = ["evaluate", "zero-shot", photos, "--output", output, "--resume", "--model"]
    assert run(*arguments, repositories["tiny ViT"]) == 0
    before = output.read_text()
    assert run(*arguments, repositories["tiny ViT"]) == 0
    assert f"known from {output}" in capsys.readouterr().err
    assert run(*arguments, repositories["tiny ViT"], "--templates", "an {}") == 1
    assert "was measured with prompts" in capsys.readouterr().err
    assert run(*arguments, repositories["tiny ResNet"]) == 1
    assert "is of another model" in capsys.readouterr().err
    (photos / "red_circle" / "0.png").unlink()
    assert run(*arguments, repositories["tiny ViT"]) == 1
    assert "was measured with" in capsys.readouterr().err
    assert output.read_text() == before


def test_prompts_name_the_classes(repositories, photos, tmp_path, capsys):
    arguments = ["evaluate", "zero-shot", photos, "--model", repositories["tiny ViT"], "--prompts", "renderedsst2"]
    assert run(*arguments) == 0
    assert "class names" not in capsys.readouterr().err  # classes of one's own
    for number, folder in enumerate(sorted(path for path in photos.iterdir() if path.is_dir())):
        folder.rename(photos / str(number))
    assert run(*arguments) == 0
    assert "class names of renderedsst2: 0 is negative, 1 is positive" in capsys.readouterr().err
    (tmp_path / "labels.txt").write_text("bad\ngood\n")
    assert run(*arguments, "--labels", tmp_path / "labels.txt") == 0
    assert "class names" not in capsys.readouterr().err


def test_benchmark_resumes_and_compares(repositories, family, tmp_path, capsys, monkeypatch):
    labeled_wds(tmp_path)
    captioned_wds(tmp_path)
    model, output = repositories[family], tmp_path / "out"
    arguments = ["evaluate", "benchmark", "vtab/colors", "flickr30k", "--root", tmp_path, "--model", model]
    arguments += ["--output", output, "--resume"]
    save = Result.save

    def killed(result, path):
        save(result, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Result, "save", killed)
        assert run(*arguments) == 130
    assert [path.name for path in output.iterdir()] == ["vtab-colors.json"]
    assert run(*arguments) == 0
    shown = capsys.readouterr()
    assert "vtab/colors: known from" in shown.err
    assert "flickr30k" in shown.out
    assert "vtab/colors: 12 images, 2 classes, chance 0.5000" in shown.out
    assert "flickr30k: 4 images, 8 texts, chance 0.2500" in shown.out
    assert {path.name for path in output.iterdir()} == {"vtab-colors.json", "flickr30k.json"}

    assert run(*arguments) == 0  # both are known
    templates = tmp_path / "wds_vtab-colors" / "zeroshot_classification_templates.txt"
    templates.write_text("the {c}")
    assert run(*arguments) == 1
    assert "vtab-colors.json was measured with prompts" in capsys.readouterr().err
    templates.write_text("a photo of a {c}.\na {c}")

    measured = json.loads((output / "flickr30k.json").read_text())["metrics"]["mean_recall@1"]
    published = {"flickr30k": {"metric": "mean_recall@1", "values": {"RN50": measured + 0.001}}}
    monkeypatch.setattr(suite, "_published", lambda: published)
    assert run(*arguments, "--published", "RN50", "--tolerance", "0.001") == 0
    plot = ["--plot", tmp_path / "out.svg"]
    assert run(*arguments, "--published", "RN50", "--tolerance", "0.0005", *plot) == 1
    assert "-0.0010" in plot[1].read_text()
    shown = capsys.readouterr()
    assert "outside the tolerance of 0.0005: flickr30k" in shown.err
    assert "-0.0010 *" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zero-shot", "nowhere"], "there is no nowhere"),
        (["zero-shot", "photos", "--labels", "a,b,c"], "has 2 classes, 3 labels are given"),
        (["zero-shot", "photos", "--prompts", "nothing"], "there are no prompts for 'nothing'"),
        (["zero-shot", "photos", "--prompts", "dtd", "--templates", "a {}"], "choose one"),
        (["zero-shot", "photos", "--output", "out.csv"], "out.csv should end in .json"),
        (["zero-shot", "photos", "--resume"], "--resume needs the --output"),
        (["retrieval", "photos"], "has no caption"),
        (["retrieval", "photos/pairs.csv", "--k", "one"], "--k is 'one'"),
        (["retrieval", "photos/pairs.csv", "--k", "0"], "k is [0]"),
        (["benchmark", "food101"], "food101 cannot be measured"),
        (["benchmark", "mnist", "--root", "."], "there is no wds_mnist/test"),
        (["benchmark", "mnist", "--root", ".", "--published", "B/32"], "nothing is published of B/32"),
    ],
)
def test_bad_input_gets_one_line(repositories, photos, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", *arguments, "--model", repositories["tiny ViT"]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert message in errors[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


def test_benchmark_draws_models_together_unless_their_files_would_be_the_same(repositories, tmp_path, capsys):
    labeled_wds(tmp_path)
    models = [word for path in repositories.values() for word in ("--model", path)]
    arguments = ["evaluate", "benchmark", "vtab/colors", "--root", tmp_path]
    assert run(*arguments, *models, "--plot", tmp_path / "out.svg") == 0
    drawn = (tmp_path / "out.svg").read_text()
    assert all(path.name in drawn for path in repositories.values())
    capsys.readouterr()
    assert run(*arguments, *models[:2], *models[:2], "--output", tmp_path / "out") == 1
    assert "models have the same name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tar_cut_short_gets_one_line(repositories, tmp_path, capsys):
    shard = labeled_wds(tmp_path) / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    output = tmp_path / "out"
    arguments = ["evaluate", "benchmark", "vtab/colors", "--root", tmp_path, "--output", output]
    assert run(*arguments, "--model", repositories["tiny ViT"]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert "0.tar" in errors[-1]
    assert not output.exists()


def test_benchmark_refuses_a_result_of_another_revision_or_model(repositories, tmp_path, capsys):
    arguments = ["evaluate", "benchmark", "flickr30k", "--output", tmp_path / "out", "--resume", "--root"]
    captioned_wds(tmp_path / "first")
    assert run(*arguments, tmp_path / "first", "--model", repositories["tiny ViT"]) == 0
    result = (tmp_path / "out" / "flickr30k.json").read_bytes()
    assert run(*arguments, tmp_path / "first", "--model", repositories["tiny ResNet"]) == 1
    assert "flickr30k.json is of another model" in capsys.readouterr().err
    shard = captioned_wds(tmp_path / "second") / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes().replace(b"the color 0", b"the color 9"))
    assert run(*arguments, tmp_path / "second", "--model", repositories["tiny ViT"]) == 1
    assert "flickr30k.json was measured with data" in capsys.readouterr().err
    assert (tmp_path / "out" / "flickr30k.json").read_bytes() == result


def test_embeddings_that_are_nan_get_one_line(repositories, photos, tmp_path, monkeypatch, capsys):
    broken = lambda *_, **__: iter([([None] * 6, torch.full((6, 64), torch.nan))])  # noqa: E731
    monkeypatch.setattr(embeddings, "image_features", broken)
    output = tmp_path / "out.json"
    assert run("evaluate", "zero-shot", photos, "--output", output, "--model", repositories["tiny ViT"]) == 1
    assert "hold NaN or infinite values" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not output.exists()


KILLED_AFTER = """
import os, runpy, signal, sys
first = sys.argv.pop(1)
sys.addaudithook(
    lambda event, _: event == "open" and os.path.exists(first) and os.kill(os.getpid(), signal.SIGKILL)
)
runpy.run_module("hf_clip", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_killed_benchmark_resumes_and_leaves_no_half_file(repositories, tmp_path, capsys):
    """SIGKILL when the second of six data sets is opened: the first is known, the others are measured as ever."""
    names = [f"set{number}" for number in range(6)]
    for name in names:
        labeled_wds(tmp_path, name)
    output = tmp_path / "out"
    command = ["evaluate", "benchmark", *names, "--root", tmp_path, "--model", repositories["tiny ViT"]]
    command += ["--resume", "--output"]
    killed = [sys.executable, "-c", KILLED_AFTER, output / "set0.json", *command, output]
    done = subprocess.run(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=as_many_threads())
    assert done.returncode == -signal.SIGKILL
    finished = {file.name: file.read_bytes() for file in output.glob("*.json")}
    assert list(finished) == ["set0.json"]
    assert all(json.loads(content)["metrics"] for content in finished.values())
    assert run(*command, output) == 0
    assert capsys.readouterr().err.count("known from") == len(finished)
    assert all((output / name).read_bytes() == content for name, content in finished.items())
    assert run(*command, tmp_path / "whole") == 0
    for name in names:
        assert (output / f"{name}.json").read_bytes() == (tmp_path / "whole" / f"{name}.json").read_bytes()


def test_a_table_of_absolute_paths_is_read_where_allowed(repositories, photos, tmp_path, capsys):
    rows = [{**row, "image": photos / row["image"]} for row in captions(photos)]
    (tmp_path / "elsewhere").mkdir()
    table = tmp_path / "elsewhere" / "pairs.csv"
    write_csv(table, rows)
    model = ["--model", repositories["tiny ViT"]]
    assert run("evaluate", "retrieval", table, *model) == 1
    assert "--allow-scheme file" in capsys.readouterr().err
    assert run("evaluate", "retrieval", table, *model, "--allow-scheme", "file") == 0
