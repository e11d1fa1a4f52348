"""The code of docs/vector_databases.md finds what exact search finds, and that of docs/questions.md needs no torch."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pgserver
import pytest
from support.commands import run
from support.image_corpus import random_image
from support.pages import ROOT, blocks

from hf_clip import embed_images, embed_texts, export_clip, load_clip

pytestmark = pytest.mark.integration


@pytest.fixture
def desk(repositories, family, tmp_path, monkeypatch) -> Path:
    """A folder with a model, eight photos and a broken one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(repositories[family], "clip-rn50")
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        random_image("RGB", 70, 50, rng).save(f"photos/{number}.png")
    Path("photos/broken.png").write_bytes(b"no image")
    return tmp_path


def test_every_vector_database_finds_what_exact_search_finds(desk, tmp_path_factory):
    assert run("embed", "photos", "--output", "embeddings", "--model", "clip-rn50") == 0
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    found: list[list[tuple[str, float]]] = []
    namespace = {"print": found.append}
    for _, code in blocks(ROOT / "docs" / "vector_databases.md", "python", "py"):
        exec(code.replace('"dbname=photos"', repr(server.get_uri())), namespace)
    server.cleanup()
    scores = (namespace["vectors"] @ namespace["query"][0]).tolist()
    paths = namespace["table"]["path"].to_pylist()
    assert len(paths) == 8
    expected = sorted(zip(paths, scores, strict=True), key=lambda pair: -pair[1])[:5]
    assert len(found) == 4
    for hits in found:
        assert [path for path, _ in hits] == [path for path, _ in expected]
        assert [score for _, score in hits] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_an_exported_folder_runs_without_torch(desk):
    export_clip("clip-rn50", "clip-onnx", preprocessing=True)
    shutil.copy("photos/0.png", "photo.jpg")
    (code,) = [code for _, code in blocks(ROOT / "docs" / "questions.md", "py") if "onnxruntime" in code]
    client = f"import sys\nsys.modules['torch'] = None\n{code}"
    result = subprocess.run([sys.executable, "-c", client], capture_output=True, text=True, check=True)
    model, processor = load_clip("clip-rn50")
    cosine = embed_images(model, processor, ["photo.jpg"]) @ embed_texts(model, processor, ["a photo of a cat"]).T
    assert float(re.search(r"-?\d\.\d+(e-\d+)?", result.stdout)[0]) == pytest.approx(cosine.item(), abs=1e-4)
