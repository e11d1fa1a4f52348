"""Spark runs the callables, as docs/scale.md has it: for those who have Java 17 and pyspark (450 MB)."""

import shutil
import sys

import numpy as np
import pytest
import torch
from support.originals import FAMILIES
from support.pages import ROOT, blocks
from support.photos import BROKEN, READABLE, make_photos

from hf_clip import ImageEmbedder, ImagePreprocessor
from hf_clip.embedding.arrow import OnArrow

pytestmark = pytest.mark.exhaustive
sql = pytest.importorskip("pyspark.sql")


@pytest.fixture
def spark(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = {"spark.ui.enabled": "false", "spark.executorEnv.OMP_NUM_THREADS": str(torch.get_num_threads())}
    session = sql.SparkSession.builder.master("local[1]").config(map=options).getOrCreate()
    yield session
    session.stop()


def test_the_code_of_the_page_embeds_a_frame(spark, repositories, tmp_path):
    folder = shutil.copytree(repositories[FAMILIES[0]], "clip-rn50")
    photos = make_photos(tmp_path / "photos")
    names = [*READABLE, BROKEN]
    frame = spark.createDataFrame([(name, str(photos / name)) for name in names], "key string, image string")
    namespace = {"frame": frame, "OnArrow": OnArrow}
    namespace |= {"ImagePreprocessor": ImagePreprocessor, "ImageEmbedder": ImageEmbedder}
    (code,) = (code for _, code in blocks(ROOT / "docs" / "scale.md", "py") if "mapInArrow" in code)
    exec(code, namespace)
    rows = {row["key"]: row for row in namespace["rows"].collect()}
    expected = ImageEmbedder(str(folder))(
        ImagePreprocessor(str(folder))({"image": [str(photos / name) for name in names]})
    )
    found = np.array([rows[name]["embedding"] for name in names], np.float32)
    assert np.array_equal(found, expected["embedding"], equal_nan=True)
    assert [name for name in names if rows[name]["error"]] == [BROKEN]
