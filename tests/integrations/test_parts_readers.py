"""Parts open in other readers of parquet, which know nothing of us or of Ray."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.commands import run
from support.originals import FAMILIES
from support.photos import BROKEN, READABLE, make_photos

from hf_clip.embedding.parts import iter_parts
from hf_clip.utils.places import place_at

pytestmark = pytest.mark.integration
DIM = 64
CHECK = """
import sys
import numpy as np
{read}
found = dict(zip(paths, rows))
expected = np.load(sys.argv[2], allow_pickle=False)
for path, row in zip(expected["paths"], expected["rows"]):
    assert np.array_equal(np.asarray(found[str(path)], np.float32), row), path
missing = [path for path, row in found.items() if np.isnan(np.asarray(row, np.float32)).any()]
assert missing == ["broken.png"], missing
assert "ray" not in sys.modules and "torch" not in sys.modules and "hf_clip" not in sys.modules
"""
READERS = {
    "pandas": """
import pandas
frame = pandas.read_parquet(sys.argv[1])
paths, rows = list(frame["path"]), list(frame["embedding"])
""",
    "polars": """
import polars
frame = polars.read_parquet(f"{sys.argv[1]}/part-*.parquet")
assert frame.schema["embedding"] == polars.Array(polars.Float32, 64), frame.schema
paths, rows = frame["path"].to_list(), frame["embedding"].to_list()
""",
    "duckdb": """
import duckdb
found = duckdb.sql(f"select path, embedding from read_parquet('{sys.argv[1]}/part-*.parquet')").fetchall()
paths, rows = zip(*found)
""",
    "pyarrow": """
import pyarrow as pa, pyarrow.dataset as ds
table = ds.dataset([*map(str, __import__("pathlib").Path(sys.argv[1]).glob("part-*"))], format="parquet").to_table()
assert table.schema.field("embedding").type == pa.list_(pa.float32(), 64)
paths, rows = table["path"].to_pylist(), table["embedding"].to_pylist()
""",
}


@pytest.fixture(scope="module")
def parts(repositories, tmp_path_factory) -> Path:
    """Parts of two rows each, and what they hold."""
    folder = tmp_path_factory.mktemp("parts")
    photos = make_photos(folder / "photos")
    model = repositories[FAMILIES[0]]
    assert run("embed", photos, "-o", folder / "emb", "-m", model, "--batch-size", 2, "--part-rows", 2) == 0
    held = [(columns["path"].to_pylist(), rows) for columns, rows in iter_parts(place_at(str(folder / "emb")))]
    paths = [path for some, _ in held for path in some]
    rows = np.concatenate([rows for _, rows in held])
    assert sorted(paths) == sorted(READABLE)
    np.savez(folder / "expected.npz", paths=np.array(paths), rows=rows)
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_parts_open_elsewhere(reader, parts):
    pytest.importorskip(reader)
    code = CHECK.format(read=READERS[reader])
    arguments = [str(parts / "emb"), str(parts / "expected.npz")]
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert BROKEN == "broken.png"
