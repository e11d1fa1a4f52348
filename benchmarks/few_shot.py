"""`python -m benchmarks.few_shot`: accuracy from 1 to 16 pictures of a class, and the seconds of a fit.

The models of examples/ know colored shapes and have never seen a digit: on digits their texts know nothing, on shapes
nearly all. Pictures are drawn from one half, by seeds; accuracy is that on the other half, of which nothing was chosen.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.stats import t
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from examples.shapes import PAIRS, draw
from examples.train_shapes import CHECKPOINTS
from hf_clip import embed_images, load_clip
from hf_clip.few_shot.fitting import AUTO, CHOSEN, fit_head
from hf_clip.few_shot.heads import FEW_SHOT_HEADS
from hf_clip.few_shot.selection import Blend
from hf_clip.zero_shot.prompts import TEMPLATE, embed_labels
from hf_clip.zero_shot.scoring import zero_shot_logits

from .machine import describe

SHOTS = (1, 2, 4, 8, 16)
ZERO_SHOT, PROBE, ESTIMATE = "zero-shot", "linear probe", "auto, as it estimates itself"
Data = tuple[list[Image.Image], list[int], list[str], str]


def digits() -> Data:
    """Return scikit-learn's digits as pictures, their classes, the names of these, and a template."""
    found = load_digits()
    pixels = (found.images * 15.9375).astype(np.uint8)
    pictures = [Image.fromarray(each).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB") for each in pixels]
    return pictures, found.target.tolist(), list("0123456789"), 'a photo of the number: "{}".'


def shapes(each: int = 40) -> Data:
    """Draw `each` pictures of every colored shape."""
    rng = np.random.default_rng(6)
    drawn = [(draw(*pair, rng), place) for _ in range(each) for place, pair in enumerate(PAIRS)]
    return [image for image, _ in drawn], [place for _, place in drawn], [" ".join(pair) for pair in PAIRS], TEMPLATE


DATA: dict[str, Callable[[], Data]] = {"digits": digits, "shapes": shapes}


def embedded(family: str, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of the texts, the embeddings and the classes of a data set's pictures."""
    pictures, targets, names, template = data
    model, processor = load_clip(str(CHECKPOINTS[family]))
    embeds = embed_images(model, processor, pictures, batch_size=64)
    return (
        zero_shot_logits(model, embeds, embed_labels(model, processor, names, template)),
        embeds,
        torch.tensor(targets),
    )


def accuracies(texts: Tensor, embeds: Tensor, targets: Tensor, shots: int, seed: int) -> dict[str, float]:
    """Fit all heads to `shots` pictures of each class of one half, and measure them on the other half."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    pool, test = order.tensor_split(2)
    classes = range(texts.shape[1])
    known = torch.cat([pool[targets[pool] == number][:shots] for number in classes])
    fitted = fit_head(texts[known], embeds[known], targets[known], AUTO, seed=seed)

    def share(logits: Tensor) -> float:
        return float((logits.argmax(1) == targets[test]).float().mean())

    found = {ZERO_SHOT: share(texts[test])}
    for name, kind in FEW_SHOT_HEADS.items():
        blend = fitted.blends.get(name)
        if blend is None:  # nothing can be held out: the defaults of this head
            blend = fit_head(texts[known], embeds[known], targets[known], name).blend
        head = kind.fit(embeds[known], targets[known], len(classes), blend.setting)
        if name == "logistic":
            found[PROBE] = share(head(embeds[test]))
        found[name] = share(joined(texts[test], head(embeds[test]), blend))
    found[AUTO] = share(joined(texts[test], fitted.head(embeds[test]), fitted.blend))
    if fitted.hits:
        found[ESTIMATE] = float(fitted.hits[CHOSEN].hits.mean())
    return found


def joined(texts: Tensor, scores: Tensor, blend: Blend) -> Tensor:
    """Return the logits of a blend."""
    return blend.of_texts * texts + blend.of_pictures * scores


def measure(family: str, name: str, seeds: int) -> dict[str, dict[int, list[float]]]:
    """Return accuracies by head and shots, one for each seed."""
    texts, embeds, targets = embedded(family, DATA[name]())
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for shots in tqdm(SHOTS, desc=f"{name}, {family}"):
        for seed in range(seeds):
            for head, accuracy in accuracies(texts, embeds, targets, shots, seed).items():
                found[head][shots].append(accuracy)
    return found


def interval(values: list[float]) -> str:
    """Return the mean over seeds with half of Student's 95 % interval."""
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.3f} ± {half:.3f}"


def seconds(pictures: int = 1_000, dim: int = 512, classes: int = 10) -> dict[str, float]:
    """Return the CPU seconds of a fit from stored embeddings on one thread, all folds included; the best of three."""
    generator = torch.Generator().manual_seed(0)
    targets, axes = torch.arange(pictures) % classes, torch.randn(classes, dim, generator=generator)
    embeds = normalize(0.15 * axes[targets] + torch.randn(pictures, dim, generator=generator), dim=1)
    texts = 100 * embeds @ normalize(0.3 * axes + torch.randn(classes, dim, generator=generator), dim=1).T

    def one_fit(head: str) -> float:
        start = time.process_time()
        fit_head(texts, embeds, targets, head)
        return time.process_time() - start

    torch.set_num_threads(1)
    with threadpool_limits(1):
        return {head: min(one_fit(head) for _ in range(3)) for head in (AUTO, *FEW_SHOT_HEADS)}


def main(
    seeds: Annotated[int, typer.Option(min=2, help="Draws of pictures.")] = 5,
    families: Annotated[str, typer.Option(help="Families of the models of examples/.")] = ",".join(CHECKPOINTS),
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the numbers.")] = Path(
        "build/benchmarks/few_shot.json"
    ),
) -> None:
    """Measure few-shot heads on digits and shapes, and time them.

    Example: python -m benchmarks.few_shot --families vit
    """
    console = Console(width=max(110, Console().width))
    console.print(describe(torch.device("cpu")))
    times = seconds()
    console.print(
        "CPU seconds of a fit on one thread, 1,000 x 512, 10 classes:",
        {head: round(value, 2) for head, value in times.items()},
    )
    found = {}
    for family in families.split(","):
        for name in DATA:
            rows = found[f"{name}, {family}"] = measure(family, name, seeds)
            table = Table("pictures a class", *map(str, SHOTS), title=f"{name}, shapes-{family}", box=SIMPLE_HEAD)
            for head, by_shots in rows.items():
                table.add_row(head, *(interval(by_shots[shots]) if shots in by_shots else "" for shots in SHOTS))
            console.print(table)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"accuracy": found, "seconds": times}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
