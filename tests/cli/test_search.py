"""`hf-clip index`, `search` and `duplicates`."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from support.commands import run
from support.originals import FAMILIES

from hf_clip.cli import common, search
from hf_clip.utils.places import place_at

pytest.importorskip("pyarrow")


@pytest.fixture
def index(embed, photos, tmp_path):
    """Index the photos, one of them twice."""
    shutil.copy(photos / "0.png", photos / "copy.png")
    embed()
    assert run("index", tmp_path / "out.npy", "-o", tmp_path / "i", "--folder", photos) == 0
    return tmp_path / "i"


IN_A_PROCESS = """
import sys
from hf_clip_command import main
sys.argv[1:] = ["search", *sys.argv[1:], "a red car", "--minus", "snow"]
try:
    main()
finally:
    print({"torch", "transformers"} & set(sys.modules))
"""


def test_a_text_query_needs_neither_the_model_nor_torch(index, capsys):
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS, index], capture_output=True, text=True, check=True)
    *lines, modules = done.stdout.splitlines()
    assert modules == "set()"
    capsys.readouterr()
    assert run("search", index, "a red car", "--minus", "snow", "--device", "cpu") == 0
    expected = capsys.readouterr().out.splitlines()
    assert [float(line.split()[0]) for line in lines] == pytest.approx(
        [float(x.split()[0]) for x in expected], abs=2e-4
    )


def test_a_text_query_loads_only_the_text_tower(index, photos, tmp_path, capsys, monkeypatch):
    assert run("index", tmp_path / "out.npy", "-o", index, "--folder", photos, "--no-text-tower") == 0
    monkeypatch.setattr(common, "load_model", None)
    capsys.readouterr()
    assert run("search", index, "a red car", "-k", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert [float(line.split()[0]) for line in lines] == sorted(
        (float(line.split()[0]) for line in lines), reverse=True
    )


def test_json_and_sheets_show_the_same_images(index, photos, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    capsys.readouterr()
    arguments = ["search", index, "--image", f"{photos / '0.png'}^2", "--minus", "snow^0.1", "-k", 2, "--json"]
    assert run(*arguments, "--html", tmp_path / "s.html", "--plot", tmp_path / "s.png") == 0
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [hit["path"] for hit in hits] == ["0.png", "copy.png"]
    page = (tmp_path / "s.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "copy.png" in page
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_conditions_select_images(index, capsys):
    capsys.readouterr()
    assert run("search", index, "x", "--where", "path<b", "--json") == 0
    assert [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()] == ["0.png"]
    assert run("search", index, "x", "--where", "path=nowhere") == 0
    assert "no image meets the conditions" in capsys.readouterr().err


def test_duplicates_are_listed_once(index, capsys):
    capsys.readouterr()
    assert run("duplicates", index, "--threshold", "0.9999", "--json") == 0
    out, err = capsys.readouterr()
    group = json.loads(out)
    assert (group["path"], [other["path"] for other in group["duplicates"]]) == ("0.png", ["copy.png"])
    assert err == "1 of 8 images repeat one of 1\n"


def test_the_larger_image_is_kept_and_a_link_is_no_copy(embed, photos, tmp_path, capsys):
    with Image.open(photos / "0.png") as image:
        image.resize((280, 160), Image.Resampling.NEAREST).save(photos / "zoomed.png")
    (photos / "a-link.png").symlink_to("zoomed.png")
    embed()
    assert run("index", tmp_path / "out.npy", "-o", tmp_path / "i", "--folder", photos) == 0
    capsys.readouterr()
    page = tmp_path / "d.html"
    assert run("duplicates", tmp_path / "i", "--threshold", "0.9", "--html", page) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].endswith("(keep, 0.0 MP)")
    assert lines[0].startswith(("a-link.png", "zoomed.png"))
    assert any(line.split()[1] == "0.png" for line in lines[1:])
    assert sum("a-link.png" in line or "zoomed.png" in line for line in lines) == 1
    assert "1 more names are links to a file that is listed already" in err
    assert "keep (0.0 MP)" in page.read_text()
    assert run("duplicates", tmp_path / "i", "--html", page) == 1
    assert "exists: choose another output" in capsys.readouterr().err


def test_a_sheet_without_a_picture_is_an_error(embed, photos, tmp_path, capsys):
    embed()
    assert run("index", tmp_path / "out.npy", "-o", tmp_path / "i", "--folder", tmp_path / "elsewhere") == 0
    assert run("search", tmp_path / "i", "x", "--html", tmp_path / "s.html") == 1
    err = capsys.readouterr().err
    assert f"none of the 7 images can be opened in {tmp_path / 'elsewhere'}: run hf-clip index again with --fold" in err
    assert not (tmp_path / "s.html").exists()


def test_scores_below_the_least_are_left_out(index, capsys):
    capsys.readouterr()
    assert run("search", index, "x", "--json") == 0
    scores = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]
    assert run("search", index, "x", "--min-score", scores[2] - 1e-9, "--json") == 0
    assert [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()] == scores[:3]


def test_a_cutoff_is_refused_before_a_model_is_loaded(index, capsys):
    for wrong in ("best", "-1"):
        assert run("search", index, "x", "--cutoff", wrong) == 1
        assert "choose auto, or the most images that may be found by chance" in capsys.readouterr().err


def test_an_hnsw_index_tells_its_recall(index, tmp_path, capsys):
    pytest.importorskip("usearch")
    (tmp_path / "queries.txt").write_text("a cat\na dog\n")
    arguments = ["index", tmp_path / "out.npy", "-o", tmp_path / "h", "--kind", "hnsw"]
    assert run(*arguments, "--queries", tmp_path / "queries.txt") == 0
    out = capsys.readouterr().out
    assert "recall of the 10 nearest: 100.0% on 2 texts, 32 candidates each" in out
    assert run(*arguments) == 0
    assert "8 images, 0 of them new" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "i"], "the query is empty: write a text, or pass --image"),
        (["search", "nowhere", "x"], "there is no index at nowhere"),
        (["search", "i", "x", "--where", "2020"], "'2020' is not a condition"),
        (["search", "i", "x", "--html", "no/s.html"], "cannot write no/s.html: there is no folder no"),
        (["search", "i", "x", "--html", "labels.txt"], "labels.txt should end in .htm, .html"),
        (["search", "i", ""], "a text of the query is empty"),
        (["index", "out.npy", "-o", "photos"], "photos exists and is not an index: choose another output"),
        (["index", "out.npy", "-o", "new", "--queries", "none.txt"], "there is no file none.txt"),
        (["duplicates", "nowhere"], "there is no index at nowhere"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message, index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run(*arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_another_model_is_refused(index, repositories, capsys):
    assert run("search", index, "x", "--model", repositories[FAMILIES[1]]) == 1
    assert "made with another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "pair"),
    [("a dog^2", ("a dog", 2.0)), ("a^b", ("a^b", 1.0)), ("10:30", ("10:30", 1.0)), ("x.jpg^-0.5", ("x.jpg", -0.5))],
)
def test_weights_follow_a_caret(text, pair):
    assert search.weighted([text]) == [pair]


def test_addresses_of_an_object_store_are_read_when_allowed(repositories, photos, tmp_path, capsys):
    """The folder of the embeddings is at an address: for the query, and for thumbnails."""
    fs = place_at("memory://").fs
    for name in ("0.png", "b/1.jpg"):
        fs.pipe_file(f"/bucket/{name}", (photos / name).read_bytes())
    try:
        model = repositories[FAMILIES[0]]
        assert run("embed", "memory://bucket", "-o", tmp_path / "emb", "-m", model) == 0
        assert run("index", tmp_path / "emb", "-o", tmp_path / "i") == 0
        capsys.readouterr()
        arguments = ["search", tmp_path / "i", "--image", "memory://bucket/0.png"]
        assert run(*arguments) == 1
        assert "addresses of the kind memory:// are not read: --allow-scheme memory" in capsys.readouterr().err
        assert run(*arguments, "--allow-scheme", "memory", "--html", tmp_path / "s.html") == 0
        assert capsys.readouterr().out.splitlines()[0].endswith("0.png")
        assert (tmp_path / "s.html").read_text().count("data:image/jpeg;base64,") == 2
        assert run("duplicates", tmp_path / "i", "--threshold", 0) == 0
        assert "2 images cannot be opened" in capsys.readouterr().err
        allowed = ["--allow-scheme", "memory"]
        assert run("duplicates", tmp_path / "i", "--threshold", 0, "--html", tmp_path / "d.html", *allowed) == 0
        assert "cannot be opened" not in capsys.readouterr().err
        assert (tmp_path / "d.html").read_text().count("data:image/jpeg;base64,") == 2
    finally:
        fs.rm("/bucket", recursive=True)
