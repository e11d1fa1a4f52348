import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from support.photos import left_behind, read

from hf_clip.embedding import files as file_store
from hf_clip.embedding.files import FileStore
from hf_clip.embedding.reading import open_embeddings
from hf_clip.embedding.stores import OUTPUT_SUFFIXES, StoreError
from hf_clip.utils.text import as_line

SETTINGS = {"model": "m", "dtype": "float32", "normalize": True, "dim": 3, "probe": [1.0, 0.0, 0.0]}
NAMES = [f"{place}\udcff\n.png" for place in range(5)]
KEYS = list(map(as_line, NAMES))
ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


def store(folder: Path, name: str = "out.npy", **changed) -> FileStore:
    return FileStore(folder / name, {**SETTINGS, **changed}, tolerance=1e-3)


def batch(places: range | list[int], errors: dict[int, str] | None = None) -> dict:
    names = [NAMES[place] for place in places]
    columns = {"path": names, "key": list(map(as_line, names)), "version": [f"{p}-{10**18 + p}" for p in places]}
    return {**columns, "embedding": ROWS[list(places)], "error": [(errors or {}).get(place) for place in places]}


def finish(opened: FileStore, places: range | list[int]) -> int:
    return opened.finish([KEYS[place] for place in places], {}, {})


def test_a_torn_partial_keeps_what_is_whole(tmp_path):
    """Cut at any byte of either file, as by a process that was killed or a disk that was full."""
    with store(tmp_path) as whole:
        whole.append(batch(range(2)))
        whole.append(batch(range(2, 4)))
    contents = {path: path.read_bytes() for path in tmp_path.iterdir()}
    index, rows = tmp_path / "out.npy.partial.jsonl", tmp_path / "out.npy.partial"
    ends = np.cumsum([len(line) for line in contents[index].splitlines(keepends=True)])
    for torn in (index, rows):
        for length in range(len(contents[torn]) + 1):
            for path, content in contents.items():
                path.write_bytes(content[:length] if path == torn else content)
            left = max(0, (ends <= length).sum() - 1) if torn == index else length // 12
            with store(tmp_path) as resumed:
                done = resumed.done()
                assert [done.get(key) for key in KEYS] == [*batch(range(left))["version"], *[None] * (5 - left)]
                resumed.append(batch(range(left, 5)))
                if length % 64 == 0:
                    finish(resumed, range(5))
                    assert np.array_equal(np.load(tmp_path / "out.npy"), ROWS)
                    (tmp_path / "out.npy").unlink()


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_rows_are_written_in_the_order_asked_for(suffix, tmp_path, monkeypatch):
    """In several chunks, of many runs; and names of files may be no Unicode."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(file_store, "FILE_CHUNK", 2)
    output = f"out{suffix}"
    for place in (3, 0, 4):
        with store(tmp_path, output) as opened:
            opened.append(batch([place]))
            finish(opened, range(5))
    with store(tmp_path, output) as opened:
        opened.append(batch([1, 2]))
        assert finish(opened, range(5)) == 0
    before = (tmp_path / output).stat()
    with store(tmp_path, output) as opened:
        assert list(opened.done()) == KEYS
        finish(opened, range(5))  # holds just these, and so nothing is written
    assert (tmp_path / output).stat().st_mtime_ns == before.st_mtime_ns
    found = read(tmp_path / output)
    assert np.array_equal(np.array(list(found.values())), ROWS)
    path = NAMES[0] if suffix == ".safetensors" else r"0\udcff\n.png"
    assert next(iter(found)) == path


def test_an_output_that_was_written_over_is_noticed(tmp_path):
    with store(tmp_path) as opened:
        opened.append(batch(range(4)))
        finish(opened, range(4))
    np.save(tmp_path / "out.npy", ROWS[:4][::-1])
    with pytest.raises(StoreError, match=r"not have the rows that out\.npy\.index\.jsonl"), store(tmp_path):
        pass
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_no_kill_gives_a_row_the_name_of_another(suffix, tmp_path, monkeypatch):
    """Whatever a run leaves when it is killed between two steps on files is refused, or right."""
    pytest.importorskip("pyarrow")
    output, states = f"out{suffix}", []

    def then_copy(step):
        def stepped(*arguments, **named):
            result = step(*arguments, **named)
            states.append(shutil.copytree(tmp_path / "now", tmp_path / str(len(states))))
            return result

        return stepped

    (tmp_path / "now").mkdir()
    with store(tmp_path / "now", output) as opened:
        opened.append(batch([0, 1, 2]))
        finish(opened, range(3))
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, then_copy(getattr(Path, name)))
    with store(tmp_path / "now", output) as opened:  # as many rows, of other images
        opened.append(batch([3]))
        opened.finish([KEYS[1], KEYS[3], KEYS[2]], {KEYS[0]: opened.done()[KEYS[0]]}, {})
    monkeypatch.undo()
    complete = 0
    for state in states:
        opened = open_embeddings(str(state / output))
        with suppress(StoreError):
            for table, rows in opened.chunks():
                complete += 1
                for key, row in zip(table["key"].to_pylist(), rows, strict=True):
                    assert np.array_equal(row, ROWS[KEYS.index(key)])
        with store(state, output) as resumed:
            resumed.append(batch([place for place in (1, 2, 3) if KEYS[place] not in resumed.done()]))
            resumed.finish([KEYS[place] for place in (1, 2, 3)], dict.fromkeys([KEYS[0]], f"0-{10**18}"), {})
        assert np.array_equal(np.array(list(read(state / output).values())), ROWS[[1, 2, 3]])
    assert 2 <= complete < len(states)


@pytest.mark.parametrize(
    ("settings", "record"),
    [
        *((text, '["a", 1, 1]') for text in ("5", "[]", "null", "{}", json.dumps({**SETTINGS, "dim": 10**12}))),
        *(
            (json.dumps(SETTINGS), text)
            for text in ("5", "{}", '["a"]', "[1, 2, 3]", '["a", null, 1]', '"abc"', "null")
        ),
    ],
)
def test_a_record_of_a_stranger_is_refused_in_one_sentence(settings, record, tmp_path):
    np.save(tmp_path / "out.npy", ROWS[:1])
    (tmp_path / "out.npy.index.jsonl").write_text(f"{settings}\n{record}\n")
    for use in (lambda: store(tmp_path).__enter__(), lambda: open_embeddings(str(tmp_path / "out.npy"))):
        with pytest.raises(StoreError, match=r"^.*out\.npy\.index\.jsonl is broken: .*$"):
            use()


def test_safetensors_headers_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(file_store, "MAX_SAFETENSORS_HEADER", 100)
    file_store.check_header(tmp_path / "out.npy", ["a.png"] * 100)
    with pytest.raises(StoreError, match="the paths of 100 images are too long for safetensors"):
        file_store.check_header(tmp_path / "out.safetensors", ["a.png"] * 100)


def test_threads_may_append(tmp_path):
    """The row of each record stays its own."""
    names = [f"{place}.png" for place in range(400)]
    rows = np.repeat(np.arange(400, dtype=np.float32)[:, None], 3, axis=1)

    def pair(start: int) -> dict:
        some = slice(start, start + 2)
        columns = {"path": names[some], "key": names[some], "version": ["1-1"] * 2}
        return {**columns, "embedding": rows[some], "error": [None] * 2}

    with store(tmp_path) as shared, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(shared.append, pair(start)) for start in range(0, 400, 2)]:
            done.result()
        assert shared.done().keys() == set(names)
        shared.finish(names, {}, {})
    assert np.array_equal(np.load(tmp_path / "out.npy"), rows)


def test_failed_gone_and_changed_images_have_no_row(tmp_path):
    """Failed ones are tried again by every run; no row is dropped for being gone unless the caller says so."""
    with store(tmp_path) as opened:
        opened.append(batch(range(4), {1: "broken"}))
        assert finish(opened, range(4)) == 0
    with store(tmp_path) as opened:
        assert list(opened.done()) == [KEYS[0], KEYS[2], KEYS[3]]
        assert finish(opened, [0, 2]) == 0  # 3 was not read, and is not known to be gone
    assert len(np.load(tmp_path / "out.npy")) == 3
    with store(tmp_path) as opened:
        done = opened.done()
        assert opened.finish([KEYS[0], KEYS[2]], {KEYS[3]: done[KEYS[3]]}, {KEYS[0]: done[KEYS[0]]}) == 2
    assert np.array_equal(np.load(tmp_path / "out.npy"), ROWS[[2]])
