"""Evaluation after embeddings exist: zero-shot, retrieval in bounded memory, probes, and growth with images."""

import subprocess
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from hf_clip.evaluation import probe
from hf_clip.metrics import classification, outcomes
from hf_clip.metrics import retrieval as recall
from hf_clip.model.modeling_hf_clip_base import normalize

from .common import Row, peak_mib, rows_of

DIM = 512
SIZES = (1_000, 10_000, 100_000)
CLASSES, TEMPLATES = 1_000, 80
IMAGES, TEXTS = 50_000, 250_000
PROBED = 2_000


def measure(images: int = IMAGES, texts: int = TEXTS) -> list[Row]:
    """Measure all parts; the large retrieval is `images` by `texts` embeddings of 512 dimensions."""
    return [*growth(), *retrieval(images, texts), *sweeps()]


def units(count: int, seed: int = 0) -> torch.Tensor:
    """Draw embeddings of length 1."""
    return normalize(torch.randn(count, DIM, generator=torch.manual_seed(seed)))


def zero_shot(images: int) -> tuple[float, float]:
    """Return the seconds of class embeddings from 80 templates and of all metrics, and those of the products alone."""
    embeds, prompts = units(images), units(CLASSES * TEMPLATES, 1).unflatten(0, (CLASSES, TEMPLATES))
    targets = torch.arange(images) % CLASSES
    start = time.perf_counter()
    classes = normalize(prompts.mean(1))
    parts = zip(embeds.split(256), targets.split(256), strict=True)
    ranks = torch.cat([classification.class_ranks(100 * part @ classes.T, target) for part, target in parts])
    outcomes.means(classification.classification_outcomes(ranks, targets, CLASSES))
    middle = time.perf_counter()
    for part in embeds.split(256):
        part @ classes.T
    return middle - start, time.perf_counter() - middle


def growth() -> list[Row]:
    """Measure zero-shot metrics on more and more images."""
    rows = []
    for images in tqdm(SIZES, desc="evaluation", leave=False):
        ours, alone = min(zero_shot(images) for _ in range(3))
        seconds = {"matrix products alone": alone, "hf_clip metrics": ours}
        case = f"{images:,} images x {CLASSES:,} classes x {TEMPLATES} templates"
        rows += rows_of("evaluation", case, seconds, images, baseline="matrix products alone")
    return rows


def cones(images: int, texts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images around one direction and texts around another, each text near its image, as CLIP has them."""
    directions, own = units(2, 2), units(images)
    image_embeds = normalize(directions[0] + 0.3 * directions[1] + own)
    text_embeds = units(texts, 1).add_(directions[1])
    for rows in torch.arange(texts).split(images):
        text_embeds[rows] += 0.3 * own[: len(rows)]
    return image_embeds, text_embeds.div_(text_embeds.norm(dim=1, keepdim=True))


def ranks(images: int, texts: int, independent: bool) -> tuple[float, float, float]:
    """Return the seconds of retrieval and of its matrix products alone, and the MiB that retrieval added."""
    image_embeds, text_embeds = (units(images), units(texts, 1)) if independent else cones(images, texts)
    owners, blocks = torch.arange(texts) % images, list(recall._blocks(images, texts))

    def products(part: list[tuple[slice, slice]]) -> float:
        start = time.perf_counter()
        for rows, columns in part:
            image_embeds[rows] @ text_embeds[columns].T
        return time.perf_counter() - start

    alone = products(blocks[::2])  # half before and half after: a machine changes its clock
    before = peak_mib()
    start = time.perf_counter()
    recall.retrieval_metrics(image_embeds, text_embeds, owners)
    seconds = time.perf_counter() - start
    added = peak_mib() - before
    return seconds, alone + products(blocks[1::2]), added


def retrieval(images: int, texts: int) -> list[Row]:
    """Measure retrieval in a process of its own, for its peak of memory."""
    rows = []
    for kind, independent in {"embeddings like CLIP's": False, "independent embeddings": True}.items():
        code = f"from benchmarks.evaluation import ranks; print(*ranks({images}, {texts}, {independent}))"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
        ours, products, added = map(float, done.stdout.split())
        seconds = {"matrix products alone": products, "hf_clip retrieval": ours}
        notes = {"hf_clip retrieval": f"{added:,.0f} MiB added to the peak of making the embeddings"}
        case = f"retrieval, {images:,} x {texts:,} {kind}"
        rows += rows_of("evaluation", case, seconds, images, baseline="matrix products alone", notes=notes)
    return rows


def sweeps() -> list[Row]:
    """Measure the probe's search of C beside scikit-learn's own search over as fine a grid."""
    from sklearn.linear_model import LogisticRegressionCV

    rng = np.random.default_rng(0)
    targets = np.arange(PROBED) % 10
    features = rng.normal(size=(10, 64))[targets] + 2 * rng.normal(size=(PROBED, 64))
    fitted, held = probe.split(targets, 0)
    seconds = {}
    start = time.perf_counter()
    search = LogisticRegressionCV(
        Cs=10 ** probe.EXPONENTS, cv=[(fitted, held)], max_iter=1000, use_legacy_attributes=False,
    )  # fmt: skip
    search.fit(features, targets)
    seconds["LogisticRegressionCV, 97 values"] = time.perf_counter() - start
    start = time.perf_counter()
    known, others = (features[fitted], targets[fitted]), (features[held], targets[held])
    C = probe.search(lambda value: probe.fit(*known, value).score(*others), {})
    probe.fit(features, targets, C)
    seconds["hf_clip probe"] = time.perf_counter() - start
    case = f"search of C, {PROBED:,} images, 10 classes"
    return rows_of("evaluation", case, seconds, PROBED, baseline="LogisticRegressionCV, 97 values")
