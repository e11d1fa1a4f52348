"""preprocess.mjs under node, beside the image processor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.browser import node, pip_packages

from hf_clip import HFCLIPImageProcessor
from hf_clip.export import targets
from hf_clip.parity.reference import image_files

pytestmark = pytest.mark.integration
SCRIPT = Path(targets.__file__).with_name("preprocess.mjs")
# Pillow 12, which other packages of this environment ask for, resizes tall images in another order
PILLOW = "pillow==13.0.0"
EXPECTED = """
import sys
import numpy as np
from PIL import Image
from hf_clip import HFCLIPImageProcessor
size, *paths = sys.argv[1:]
size = int(size)
processor = HFCLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
for path in paths:
    processor(images=Image.open(path), return_tensors="np").pixel_values.tofile(f"{path}.expected")
"""
PROGRAM = """
import fs from "node:fs";
import { preprocess } from "SCRIPT";
const { settings, images } = JSON.parse(fs.readFileSync(0));
for (const { file, width, height, channels } of images) {
  const { data } = preprocess({ data: fs.readFileSync(file), width, height, channels }, settings);
  fs.writeFileSync(`${file}.out`, Buffer.from(data.buffer));
}
"""


@pytest.mark.parametrize("size", [32, 224])
def test_javascript_gives_the_processors_pixels(size, tmp_path):
    processor = HFCLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    generator = np.random.default_rng(0)
    shapes = [(7, 400), (300, 31), (size, size), (63, 200), (350, 149), (150, 352)]
    arrays = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    arrays += [np.asarray(Image.open(path).convert("RGB")) for path in image_files() if path.name.startswith("rgb")]
    images = []
    for index, array in enumerate(arrays):
        alpha = np.full((*array.shape[:2], 1), 200, np.uint8)
        data = np.concatenate([array, alpha], 2) if index % 2 else array  # as ImageData has it
        (tmp_path / str(index)).write_bytes(data.tobytes())
        height, width, channels = data.shape
        images.append({"file": str(tmp_path / str(index)), "width": width, "height": height, "channels": channels})
    given = json.dumps({"settings": processor.to_dict(), "images": images}, default=str)
    node("--input-type=module", "--eval", PROGRAM.replace("SCRIPT", SCRIPT.as_uri()), input=given)
    pictures = [tmp_path / f"{index}.png" for index in range(len(arrays))]
    for array, path in zip(arrays, pictures, strict=True):
        Image.fromarray(array).save(path)
    here = os.pathsep.join([str(pip_packages("pillow-13", PILLOW)), *filter(None, sys.path)])
    subprocess.run(
        [sys.executable, "-c", EXPECTED, str(size), *pictures], env={**os.environ, "PYTHONPATH": here}, check=True
    )
    for index, array in enumerate(arrays):
        expected = np.fromfile(f"{pictures[index]}.expected", np.float32)
        actual = np.fromfile(tmp_path / f"{index}.out", np.float32)
        np.testing.assert_array_equal(actual, expected, err_msg=str(array.shape))
