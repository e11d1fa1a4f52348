"""What workers of a cluster do to a block, without a cluster: the rows and bits of one machine."""

import numpy as np
import pytest
from PIL import Image
from support.commands import run
from support.image_corpus import EXIF_ORIENTATION
from support.photos import BROKEN, READABLE, load, make_photos

from hf_clip import ImageEmbedder, ImagePreprocessor
from hf_clip.data.sources import open_source
from hf_clip.embedding.arrow import OnArrow
from hf_clip.embedding.parts import iter_parts
from hf_clip.embedding.ray_engine import PartWriter, _block
from hf_clip.embedding.report import Report
from hf_clip.utils.places import place_at

pytest.importorskip("pyarrow")


@pytest.mark.parametrize("drop_errors", [False, True])
def test_a_block_becomes_a_part_and_a_report(drop_errors, repositories, tmp_path):
    photos, model = make_photos(tmp_path / "photos"), repositories["tiny ViT"]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.open(photos / "0.png").save(photos / "0.png", exif=exif)
    assert run("embed", photos, "-o", tmp_path / "here", "-m", model, "--batch-size", 8) == 0
    (tmp_path / "there").mkdir()
    table = _block(list(open_source(str(photos)).images(print)), {})
    clip = load(model)
    table = OnArrow(ImagePreprocessor, model=clip[1], count_surprises=True)(table)
    table = OnArrow(ImageEmbedder, model=clip, batch_size=8)(table)
    writer = PartWriter(str(tmp_path / "there"), "part-00001-1of1-", {}, "float32", drop_errors)
    for _ in range(2):  # a task that is repeated replaces its own part
        report = Report.from_json(writer(table)["report"][0].as_py())
    assert (report.embedded, report.failed, report.rotated, report.sixteen_bits) == (7, [BROKEN], 1, 0)
    (part,) = (tmp_path / "there").iterdir()
    import pyarrow.parquet as pq

    rows = pq.read_table(part)
    assert sorted(rows["path"].to_pylist()) == sorted(READABLE if drop_errors else [*READABLE, BROKEN])
    held = [
        {
            (key, version): row
            for columns, rows in iter_parts(place_at(str(tmp_path / name)))
            for key, version, row in zip(columns["key"].to_pylist(), columns["version"].to_pylist(), rows, strict=True)
        }
        for name in ("here", "there")
    ]
    assert held[0].keys() == held[1].keys()
    assert all(np.array_equal(held[0][key], held[1][key]) for key in held[0])
