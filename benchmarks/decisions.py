"""`python -m benchmarks.decisions`: whether a shape is there at all, calibration, prediction sets, and cutoffs.

The two models of examples/ look at drawn pictures. Five of the ten labels are pairs of color and shape that were never
drawn in training, and most pictures show none of the ten. What is calibrated is always measured on other pictures.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from examples.shapes import HELD_OUT, PAIRS, SEEN, draw, draw_two
from examples.train_shapes import CHECKPOINTS
from hf_clip import embed_images, embed_texts, load_clip
from hf_clip.metrics import (
    classification_metrics,
    conformal_quantile,
    expected_calibration_error,
    threshold_for_precision,
)
from hf_clip.search.cutoff import expected_by_chance, stand_out
from hf_clip.zero_shot.calibration import calibrate_head
from hf_clip.zero_shot.canonical_texts import CANONICAL_TEXTS
from hf_clip.zero_shot.head import ClassifierHead, make_head

TEMPLATE = "a photo of a {}."
ALPHA, CALIBRATED_BY, WANTED = 0.1, 50, 0.9
ASKED = [*HELD_OUT, *SEEN[::7]]
OTHERS = [pair for pair in PAIRS if pair not in ASKED]
NOISE = 45  # of 255


@dataclass
class Pictures:
    """Embeddings of pictures (N, dim), and which of PAIRS each shows (N, pairs)."""

    embeds: Tensor
    shows: Tensor


def words(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [" ".join(pair) for pair in pairs]


def drawn(count: int, seed: int) -> dict[str, tuple[list[Image.Image], list[set[int]]]]:
    """Draw pictures of one shape, noisy ones of one shape, and ones of two shapes."""
    rng = np.random.default_rng(seed)
    places = [number % len(PAIRS) for number in range(count)]
    one = [draw(*PAIRS[place], rng) for place in places]
    noisy = [with_noise(draw(*PAIRS[place], rng, (64, 64)), rng) for place in places]
    couples = [rng.choice(len(PAIRS), 2, replace=False).tolist() for _ in range(count)]
    two = [draw_two(*(PAIRS[place] for place in couple), rng)[0] for couple in couples]
    single = [{place} for place in places]
    return {"one shape": (one, single), "noisy": (noisy, single), "two shapes": (two, list(map(set, couples)))}


def with_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Add the same normal noise to all pixels of each block of 4 x 4."""
    noise = rng.normal(0, NOISE, (image.height // 4, image.width // 4, 3)).repeat(4, 0).repeat(4, 1)
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def embedded(model: Any, processor: Any, images: list[Image.Image], shown: list[set[int]]) -> Pictures:
    shows = torch.tensor([[place in some for place in range(len(PAIRS))] for some in shown])
    return Pictures(embed_images(model, processor, images, batch_size=64), shows)


def halves(count: int, splits: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random halves of `count` places."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(splits):
        order = torch.randperm(count, generator=generator)
        yield order[: count // 2], order[count // 2 :]


# --- coverage ---------------------------------------------------------------------------------------------------------


def coverage(head: ClassifierHead, evidence: Tensor, places: Tensor, splits: int) -> dict[str, Any]:
    """Count over random splits how often a new picture's right label is in its set.

    A picture that is drawn at random is as strange as any of those that the set was made by, so the count is binomial
    with a known share, whatever the pictures are, unless strangeness is equal.
    """
    strangeness = 1 - head.scores(evidence.double()).gather(1, places[:, None])[:, 0]
    strangeness += 1e-12 * torch.arange(len(strangeness))  # no two are equal
    generator, covered, sizes = torch.Generator().manual_seed(0), 0, []
    for _ in range(splits):
        order = torch.randperm(len(places), generator=generator)
        quantile = conformal_quantile(strangeness[order[:CALIBRATED_BY]], ALPHA)
        new = order[CALIBRATED_BY]
        covered += strangeness[new].item() <= quantile
        sizes.append((1 - head.scores(evidence[new : new + 1].double()) <= quantile).sum().item())
    share = math.ceil(round((CALIBRATED_BY + 1) * (1 - ALPHA), 9)) / (CALIBRATED_BY + 1)
    low, high = binomial_band(splits, share)
    return {"covered": covered / splits, "low": low / splits, "high": high / splits, "labels in a set": np.mean(sizes)}


def binomial_band(trials: int, share: float, confidence: float = 0.999) -> tuple[int, int]:
    """Return the ends of the band that holds `confidence` of a binomial distribution."""
    hits = np.arange(trials + 1)
    ways = np.array([math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in hits])
    below = np.cumsum(np.exp(ways + hits * math.log(share) + (trials - hits) * math.log1p(-share)))
    tail = (1 - confidence) / 2
    return int(np.searchsorted(below, tail)), int(np.searchsorted(below, 1 - tail))


# --- calibration ------------------------------------------------------------------------------------------------------


def errors(head: ClassifierHead, evidence: Tensor, places: Tensor, splits: int) -> dict[str, float]:
    """Measure accuracy and calibration errors on the halves that calibration did not see, the mean of `splits`."""
    targets = torch.nn.functional.one_hot(places, len(head.labels)).bool()
    found: list[dict[str, float]] = []
    for known, new in halves(len(places), splits):
        try:
            calibrated = calibrate_head(head, evidence[known], targets[known], precision=WANTED)
        except ValueError:  # out of reach
            calibrated = calibrate_head(head, evidence[known], targets[known])
        row = {"accuracy": classification_metrics(evidence[new], places[new])["acc1"]}
        for name, each in (("before", head), ("after", calibrated)):
            best = each.scores(evidence[new]).max(1)
            row[f"error {name}"] = expected_calibration_error(best.values.clamp(max=1), best.indices == places[new])
        assert calibrated.calibration is not None
        chosen = calibrated.calibration.report["thresholds"]
        row["assured"] = float(bool(chosen) and chosen["all"]["assured"])
        if row["assured"]:
            taken = best.values >= calibrated.least_scores()[best.indices]
            precision = (best.indices == places[new])[taken].double().mean().item()
            row |= {"precision": precision, "kept": taken.double().mean().item(), "broken": float(precision < WANTED)}
        found.append(row)
    return mean_of(found)


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Average the columns of rows, each over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def digits_head(model: Any, processor: Any, known: int) -> tuple[ClassifierHead, Tensor, Tensor]:
    """Fit a logistic regression to `known` digits; return the head, and the evidence and classes of the others.

    The models know no digits: their scores are wrong often enough to have something to calibrate.
    """
    pixels, targets = load_digits(return_X_y=True)
    images = [Image.fromarray((255 - 15 * row.reshape(8, 8)).astype(np.uint8)).convert("RGB") for row in pixels]
    embeds, places = embed_images(model, processor, images, batch_size=64), torch.from_numpy(targets)
    fitted = LogisticRegression(C=100, max_iter=2000).fit(embeds[:known], targets[:known])
    weights, bias = (torch.from_numpy(values).float() for values in (fitted.coef_, fitted.intercept_))
    labels = [str(digit) for digit in range(10)]
    head = ClassifierHead(labels, [], weights / model.logit_scale.detach().exp(), bias=bias)
    return head, head.evidence(model, embeds[known:]), places[known:]


# --- presence ---------------------------------------------------------------------------------------------------------


def presence(model: Any, processor: Any, pictures: Pictures, splits: int) -> dict[str, dict[str, float]]:
    """Measure how well each way tells the pictures with a label from those without it, label by label."""
    labels, asked = words(ASKED), pictures.shows[:, [PAIRS.index(pair) for pair in ASKED]]
    background = {"words": CANONICAL_TEXTS, "others": words(OTHERS)}
    heads = {"one: softmax": make_head(model, processor, labels, TEMPLATE)}
    for name, texts in background.items():
        for mode in ("any", "each"):
            heads[f"{mode}, {name}"] = make_head(model, processor, labels, TEMPLATE, mode, texts)
    rows = {}
    for name, head in heads.items():
        evidence = head.evidence(model, pictures.embeds)
        found = [presence_of(head, evidence, asked, *half) for half in halves(len(asked), splits)]
        rows[name] = mean_of(found)
    return rows


def presence_of(head: ClassifierHead, evidence: Tensor, asked: Tensor, known: Tensor, new: Tensor) -> dict[str, float]:
    """Calibrate on the known half where the mode allows; AUROC, and precision and recall at thresholds, on the new."""
    several = (asked.sum(1) > 1).any()
    if head.mode == "each" or (head.mode == "any" and not several):
        head = calibrate_head(head, evidence[known], asked[known])
    scores = head.scores(evidence)[:, : len(head.labels)]
    row = {"AUROC": roc_auc_score(asked[new].flatten(), scores[new].flatten())}
    none = ~asked[new].any(1)
    row["sure of a label that is not there"] = (scores[new][none].max(1).values > 0.9).double().mean().item()
    try:
        found = threshold_for_precision(scores[known].flatten(), asked[known].flatten(), WANTED)
    except ValueError:  # out of reach
        return row | {"assured": 0.0}
    taken = scores[new] >= found.value - 1e-6
    hits = (taken & asked[new]).sum().item()
    return row | {
        "assured": float(found.assured),
        "precision": hits / max(1, int(taken.sum())),
        "recall": hits / int(asked[new].sum()),
    }


# --- cutoff -----------------------------------------------------------------------------------------------------------


def cutoff(model: Any, processor: Any, pictures: Pictures, bank: Sequence[str]) -> dict[str, float]:
    """Search each pair in a collection with and without it."""
    texts = embed_texts(model, processor, [TEMPLATE.format(text) for text in words(PAIRS)]).numpy()
    fit_anywhere, rows = embed_texts(model, processor, list(bank)).numpy(), pictures.embeds.numpy()
    found = []
    for place, query in enumerate(texts):
        shows = pictures.shows[:, place].numpy()
        for collection in (rows, rows[~shows]):
            best = np.argsort(-(collection @ query))[:200]
            kept = best[stand_out(expected_by_chance(collection, query, fit_anywhere, best))]
            if collection is rows:
                row = {"recall": shows[kept].sum() / shows.sum()}
                found.append(row | ({"precision": shows[kept].mean()} if len(kept) else {}))
            else:
                found.append({"absent: finds nothing": float(not len(kept)), "absent: kept": float(len(kept))})
    return mean_of(found)


# --- tables -----------------------------------------------------------------------------------------------------------


def show(console: Console, title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print one table."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = Table("", *columns, title=title, box=SIMPLE_HEAD, title_justify="left")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.3f}" if column in row else "-" for column in columns))
    console.print(table)


def measure(family: str, count: int, splits: int, show: Callable[[str, dict], None]) -> dict[str, Any]:
    """Measure everything of one family."""
    model, processor = load_clip(str(CHECKPOINTS[family]))
    pictures = {name: embedded(model, processor, *made) for name, made in drawn(count, 7).items()}
    every = make_head(model, processor, words(PAIRS), TEMPLATE)
    noisy = pictures["noisy"]
    shapes = (every, every.evidence(model, noisy.embeds), noisy.shows.int().argmax(1))
    tried = {"noisy shapes, 40 labels": shapes, "digits, fitted to 500": digits_head(model, processor, 500)}
    kinds = [pictures[name] for name in ("one shape", "two shapes")]
    both = Pictures(torch.cat([each.embeds for each in kinds]), torch.cat([each.shows for each in kinds]))
    banks = {"object, things, stuff, texture": CANONICAL_TEXTS, "all 40 pairs": words(PAIRS)}
    halved, asked = max(2, splits // 50), f"presence of {len(ASKED)} labels"
    results: dict[str, Any] = {
        f"coverage wanted {1 - ALPHA:g}, {splits} splits": {
            name: coverage(*each, splits) for name, each in tried.items()
        },
        f"calibrated on half, precision wanted {WANTED:g}, {halved} splits": {
            name: errors(*each, halved) for name, each in tried.items()
        },
        **{
            f"{asked}, {name}": presence(model, processor, pictures[name], max(2, splits // 100))
            for name in ("one shape", "noisy", "two shapes")
        },
        "search --cutoff auto": {name: cutoff(model, processor, both, bank) for name, bank in banks.items()},
    }
    for title, rows in results.items():
        show(f"shapes-{family}: {title}", rows)
    return results


def main(
    count: Annotated[int, typer.Option("--pictures", help="Pictures of each kind.")] = 600,
    splits: Annotated[int, typer.Option(help="Random splits for coverage; a part of them for the rest.")] = 1000,
    families: Annotated[str, typer.Option(help="Models of examples/ to measure.")] = ",".join(CHECKPOINTS),
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the numbers.")] = Path(
        "build/benchmarks/decisions.json"
    ),
) -> None:
    """Measure decisions, calibration, prediction sets and cutoffs on drawn shapes and on digits.

    Example: python -m benchmarks.decisions --pictures 400 --splits 100
    """
    console = Console(width=max(150, Console().width))
    found = {
        family: measure(family, count, splits, lambda title, rows: show(console, title, rows))
        for family in families.split(",")
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"pictures": count, "splits": splits, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
