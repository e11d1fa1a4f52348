"""fp16 and q8 of the trained example models: sizes, cosines, and the answers they give."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from examples.shapes import PAIRS, draw
from examples.train_shapes import CHECKPOINTS, PROMPT
from hf_clip import embed_images, embed_texts, export_clip, load_clip
from hf_clip.openai.convert import convert

pytestmark = pytest.mark.integration

COUNT, CALIBRATION = 500, 40
TEXTS = [PROMPT.format(f"{color} {shape}") for color, shape in PAIRS]


def drawn(count: int, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [draw(*PAIRS[index], rng) for index in rng.integers(0, len(PAIRS), count)]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return drawn(COUNT, 7)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for number, image in enumerate(drawn(CALIBRATION, 99)):
        image.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module", params=CHECKPOINTS)
def trained(request, tmp_path_factory, pictures) -> SimpleNamespace:
    """A trained example model, and the embeddings that PyTorch gives."""
    folder = tmp_path_factory.mktemp("trained") / request.param
    convert(str(CHECKPOINTS[request.param]), folder, report=lambda _: None)
    model, processor = load_clip(folder, dtype=torch.float32)
    images, texts = embed_images(model, processor, pictures), embed_texts(model, processor, TEXTS)
    return SimpleNamespace(folder=folder, images=images, texts=texts)


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def exported(request, trained, calibration, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("exported") / "all"
    report = export_clip(
        trained.folder,
        folder,
        runtime=request.param,
        precisions=["fp32", "fp16", "q8"],
        calibration=calibration,
        report=lambda _: None,
    )
    sizes = {(row["part"], row["precision"]): row["bytes"] for row in report["files"].values()}
    return SimpleNamespace(folder=folder, sizes=sizes)


@pytest.mark.parametrize(
    ("dtype", "precision", "least", "mean", "size"),
    [(torch.float16, "fp16", 0.9999, 0.9999, 0.52), (torch.int8, "q8", 0.9, 0.99, 0.30)],
    ids=["fp16", "q8"],
)
def test_smaller_files_answer_as_the_model_does(exported, trained, pictures, dtype, precision, least, mean, size):
    loaded, processor = load_clip(exported.folder, dtype=dtype)
    assert loaded.precision == precision
    images, texts = embed_images(loaded, processor, pictures), embed_texts(loaded, processor, TEXTS)
    for actual, expected in ((images, trained.images), (texts, trained.texts)):
        assert actual.isfinite().all()
        cosines = (actual * expected).sum(1)
        assert cosines.min() >= least
        assert cosines.mean() >= mean
    answers, expected = ((a @ b.T).argmax(1) for a, b in ((images, texts), (trained.images, trained.texts)))
    assert (answers == expected).float().mean() >= 0.99
    small, whole = (sum(exported.sizes[part, name] for part in ("vision", "text")) for name in (precision, "fp32"))
    assert small <= size * whole
