"""A directory of parts: whole parts or none, one run for each shard, one model."""

import json

import numpy as np
import pytest
from filelock import FileLock

from hf_clip.embedding.arrow import fixed_size
from hf_clip.embedding.parts import WHOLE, PartStore, Shard, iter_parts, part_places
from hf_clip.embedding.reading import open_embeddings
from hf_clip.embedding.stores import StoreError
from hf_clip.utils.places import place_at

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
SETTINGS = {"model": "m", "dtype": "float32", "normalize": True, "dim": 3, "probe": [1.0, 0.0, 0.0]}


def store(place, shard: Shard = WHOLE, restart: bool = False, **changed) -> PartStore:
    return PartStore(str(place), {**SETTINGS, "row_dtype": "float32", **changed}, 1e-3, restart, shard)


def table(keys: list[str], version: str = "1", errors: dict[str, str] | None = None):
    errors = errors or {}
    rows = np.array([[float(ord(key[0])), 2, 3] for key in keys], np.float32)
    rows[[key in errors for key in keys]] = np.nan
    columns = {"key": keys, "path": keys, "embedding": fixed_size(rows)}
    return pa.table({**columns, "error": [errors.get(key) for key in keys], "version": [version] * len(keys)})


def held(place) -> dict[str, float]:
    return {
        key: float(row[0])
        for columns, rows in iter_parts(place_at(str(place)))
        for key, row in zip(columns["key"].to_pylist(), rows, strict=True)
    }


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path):
    """A folder, and a file system that is none."""
    if request.param == "folder":
        yield tmp_path / "emb"
    else:
        fs = place_at("memory://").fs
        yield "memory://bucket/emb"
        fs.rm("/bucket", recursive=True)


def test_finished_parts_are_found_again(place):
    with store(place) as first:
        first.write(table(["a", "b"]))
        first.write(table(["c", "d"], errors={"d": "broken"}))
    with store(place) as second:
        assert second.done() == dict.fromkeys("abcd", "1")
        assert second.done(retry_errors=True) == dict.fromkeys("abc", "1")
        second.write(table(["e"]))
    assert list(held(place)) == ["a", "b", "c", "e"]


def test_pruning_keeps_the_newest_row_of_each_key(place):
    with store(place) as opened:
        opened.write(table(["a", "b"]))
        opened.write(table(["b", "c"], "2"))
        opened.write(table(["d"], "1"))
        assert opened.prune(lambda key, version: key != "d") == 2
        assert opened.done() == {"a": "1", "b": "2", "c": "2"}
        assert len(part_places(opened.place)) == 2


def test_a_failed_part_leaves_nothing(place, monkeypatch):
    import pyarrow.parquet as pq

    def full(table, file, *_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with store(place) as opened:
        opened.write(table(["a"]))
        with monkeypatch.context() as patch:
            patch.setattr(pq, "write_table", full)
            with pytest.raises(OSError, match=r"there is no room for it|No space left"):
                opened.write(table(["b"]))
        names = [path.rpartition("/")[2] for path in opened.place.fs.ls(opened.place.path, detail=False)]
        assert sorted(name for name in names if not name.endswith(".lock")) == [
            "_hf_clip.json",
            "part-00001-1of1-000001.parquet",
        ]
    assert list(held(place)) == ["a"]


def test_shards_write_side_by_side_and_share_all_keys(tmp_path):
    keys = [f"{number}.png" for number in range(40)]
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    assert sorted(key for shard in shards for key in keys if shard.holds(key)) == sorted(keys)
    with store(tmp_path, shards[0]) as one, store(tmp_path, shards[1]) as two:
        one.write(table([key for key in keys if shards[0].holds(key)]))
        two.write(table([key for key in keys if shards[1].holds(key)]))
        assert two.prune(lambda key, version: False) == sum(map(shards[1].holds, keys))
    assert set(held(tmp_path)) == set(filter(shards[0].holds, keys))


@pytest.mark.parametrize("shard", [Shard(1, 1), Shard(1, 2), Shard(2, 3)], ids=str)
def test_a_second_run_into_the_same_output_is_refused(shard, tmp_path):
    with (
        store(tmp_path, WHOLE if shard.total == 1 else Shard(1, 2)),
        pytest.raises(StoreError, match="another process is writing"),
        store(tmp_path, shard),
    ):
        pass


def test_what_a_killed_run_leaves_is_cleaned_up(tmp_path):
    with store(tmp_path):
        pass
    left = tmp_path / ".part-00001-1of1-000003.parquet.99.new"
    left.write_bytes(b"half")
    (tmp_path / ".1of1.lock").touch()
    with store(tmp_path):
        assert not left.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"probe": [0.0, 1.0, 0.0]}, r"was made with another model \(m\), not m"),
        ({"normalize": False}, "was made with normalize True, not normalize False"),
        ({"row_dtype": "float16"}, "holds rows of float32, not float16: pass the same --row-dtype"),
    ],
)
def test_rows_of_another_kind_are_refused_unless_restarted(changed, message, place):
    with store(place) as opened:
        opened.write(table(["a"]))
    with pytest.raises(StoreError, match=message), store(place, **changed):
        pass
    assert list(held(place)) == ["a"]
    with store(place, restart=True, **changed) as opened:
        assert opened.done() == {}


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").touch()
    with pytest.raises(StoreError, match=r"holds letter\.txt and no _hf_clip\.json"), store(tmp_path, restart=True):
        pass
    assert (tmp_path / "letter.txt").exists()


def test_pruning_waits_for_another_shard(tmp_path):
    with store(tmp_path) as opened:
        with FileLock(tmp_path / ".prune.lock"):
            pass
        assert opened.prune(lambda *_: True) == 0


def test_parts_open_in_other_readers(tmp_path):
    with store(tmp_path) as opened:
        opened.write(table(["a", "b"], errors={"b": "broken"}))
    import pyarrow.dataset as ds

    found = ds.dataset(tmp_path, format="parquet").to_table()
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), 3)
    assert found["embedding"].null_count == 0  # which pyarrow before 26 cannot read
    np.testing.assert_array_equal(found["embedding"].to_pylist(), [[97.0, 2.0, 3.0], [np.nan] * 3])


@pytest.mark.parametrize(
    ("settings", "parts", "message"),
    [
        (5, [{}], "it is no JSON object"),
        ({**SETTINGS, "probe": ["x"]}, [{}], r"_hf_clip\.json is broken: its probe is \['x'\]"),
        ({**SETTINGS, "dim": 10**12}, [{}], "its dim is 1000000000000"),
        ({**SETTINGS, "normalize": "x"}, [{}], "its normalize is 'x'"),
        ({**SETTINGS, "text_column": 5}, [{}], "its text_column is 5"),
        (SETTINGS, [{"embedding": ["x", "y"]}], "has string in its column embedding, no embeddings"),
        (SETTINGS, [{"embedding": fixed_size(np.ones((2, 3), np.int32))}], "no embeddings"),
        (SETTINGS, [{}, {"embedding": fixed_size(np.ones((2, 2), np.float32))}], "of 2 numbers, others of 3"),
        (SETTINGS, [{"key": [1, 2]}], "has int64 in its column key, no texts"),
        (SETTINGS, [{}, {"path": None}], r"part-00001.* has no column path"),
    ],
)
def test_a_directory_of_a_stranger_is_refused_in_one_sentence(settings, parts, message, tmp_path):
    (tmp_path / "_hf_clip.json").write_text(json.dumps(settings))
    for number, changes in enumerate(parts):
        columns = dict(zip(table(["a", "b"]).column_names, table(["a", "b"]), strict=True))
        changed = {name: column for name, column in (columns | changes).items() if column is not None}
        pq.write_table(pa.table(changed), tmp_path / f"part-{number:05d}-1of1-000001.parquet")
    with pytest.raises(StoreError, match=message) as refused:
        list(open_embeddings(str(tmp_path)).chunks())
    assert "\n" not in str(refused.value)
