from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.photos import left_behind, read

from hf_clip.embedding import store as feature_store
from hf_clip.embedding.store import FORMATS, FeatureStore, Record, StoreError

SUFFIXES = list(FORMATS)
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


def test_threads_may_append(tmp_path):
    """The row of each record stays its own."""
    records = [Record(f"{place}.png", place, place) for place in range(400)]
    rows = np.repeat(np.arange(400, dtype=np.float32)[:, None], 3, axis=1)
    with store(tmp_path) as shared, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(shared.append, records[i : i + 2], rows[i : i + 2]) for i in range(0, 400, 2)]:
            done.result()
        assert all(record in shared for record in records)
        shared.finish(records)
    assert np.array_equal(np.load(tmp_path / "out.npy"), rows)
