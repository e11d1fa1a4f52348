"""An exported folder does its work where torch and transformers cannot be imported, and as it does where they can."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from support.exports import write_export
from support.fake_graphs import use_fake_graphs
from support.photos import BROKEN, make_photos

from hf_clip import HFCLIPExportedModel, embed_images, load_clip
from hf_clip.exported import model as exported_model

ROOT = Path(__file__).parents[2]


def test_every_use_of_an_exported_folder(repositories, tmp_path, monkeypatch):
    model, processor = load_clip(repositories["tiny ViT"])
    folder, photos = write_export(tmp_path / "exported", model, processor), make_photos(tmp_path / "photos")
    output = tmp_path / "output"
    output.mkdir()
    client = ROOT / "tests" / "support" / "without_torch_client.py"
    command = [sys.executable, "-W", "ignore", client, folder, photos, output, "--fake"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    for table in (exported_model.OPEN, exported_model.CHECK_DEVICE):
        monkeypatch.setitem(table, "onnx", None)
    use_fake_graphs()
    paths = sorted(path for path in photos.glob("[!.]*.png") if path.name != BROKEN)
    expected = embed_images(HFCLIPExportedModel(folder), processor, paths).numpy()
    np.testing.assert_allclose(np.load(output / "embeds.npy"), expected, atol=1e-6)
