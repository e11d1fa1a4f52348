"""`hf-clip filter` and `hf-clip dedup`, from images and from stored embeddings."""

import pyarrow.parquet as pq
import pytest
from support.commands import run
from support.data_sets import captions, class_folders, write_csv
from support.embeddings import kept_rows


@pytest.fixture
def table(tmp_path):
    """Six images of two colors with captions."""
    photos = class_folders(tmp_path / "photos")
    return write_csv(photos / "metadata.csv", captions(photos))


def test_pairs_are_embedded_and_filtered(repositories, table, tmp_path, capsys):
    arguments = ["--model", repositories["tiny ViT"], "--output", tmp_path / "kept", "--top", 0.5]
    assert run("filter", table, *arguments) == 0
    assert "4 of 6 pairs have a CLIP score of at least" in capsys.readouterr().out
    rows = kept_rows(tmp_path / "kept")
    assert len(rows) == 4
    assert all(row["text"].endswith(("0", "1", "2")) for row in rows.values())
    # from the embeddings that were kept, without a model
    stored = tmp_path / "kept-embeddings"
    assert run("filter", stored, "--output", tmp_path / "again", "--top", 0.5) == 0
    assert kept_rows(tmp_path / "again") == rows
    assert run("filter", table, *arguments) == 0
    assert "0 new embeddings" in capsys.readouterr().out


def test_near_duplicates_are_dropped(repositories, table, tmp_path, capsys):
    arguments = ["--model", repositories["tiny ViT"], "--output", tmp_path / "kept", "--threshold", 0.9]
    assert run("dedup", table.parent, *arguments, "--embeddings", tmp_path / "stored") == 0
    kept = len(kept_rows(tmp_path / "kept"))
    assert f"{kept} of 6 images are no near-duplicates" in capsys.readouterr().out
    assert 1 <= kept < 6
    assert run("dedup", tmp_path / "stored", "--output", tmp_path / "two", "--threshold", 0.9, "--clusters", 1) == 0
    assert kept_rows(tmp_path / "two") == kept_rows(tmp_path / "kept")


def test_bad_input_is_one_sentence(repositories, table, tmp_path, capsys):
    pq.write_table(pq.read_table(_parquet(tmp_path)), tmp_path / "plain.parquet")
    model = ["--model", repositories["tiny ViT"]]
    for verb, source, options, message in (
        ("filter", table, [], "give either a least score or a fraction to keep"),
        ("filter", table, ["--top", 0.5], "has no embeddings: give the --model that embeds its images"),
        ("filter", table, ["--top", 2, *model], "the fraction to keep is 2"),
        ("filter", tmp_path / "plain.parquet", ["--top", 0.5, *model], "plain.parquet has no column text: it has"),
        ("dedup", table, ["--threshold", 0], "threshold is 0: give a cosine above 0"),
        ("dedup", tmp_path / "nowhere", model, "there is no "),
    ):
        assert run(verb, source, "--output", tmp_path / "kept", *options) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    assert not (tmp_path / "kept").exists()


def _parquet(folder):
    import pyarrow as pa

    pq.write_table(pa.table({"image": [b"1", b"2"], "size": [1, 2]}), folder / "one.parquet")
    return folder / "one.parquet"
