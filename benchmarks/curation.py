"""`python -m benchmarks.curation`: rows per second of filter and dedup, precision and recall of suspects."""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer
from rich.console import Console
from torch.nn.functional import normalize

from hf_clip.curation.clip_score import filter_pairs
from hf_clip.curation.dedup import cluster_count, cluster_rows, drop_duplicates, semantic_duplicates
from hf_clip.curation.selected import iter_part_columns, open_parts
from hf_clip.curation.suspects import outliers, wrong_labels
from hf_clip.embedding.parts import PartStore
from hf_clip.few_shot.fitting import held_out_probabilities

from .common import timed
from .few_shot import digits, embedded, shapes
from .machine import describe
from .vectors import two_cones, unit

PART = 10_000
FLIPPED, ODD = 0.05, 20
# digits as their own embeddings, which tell more of them than a model that has never seen one
PIXELS = "pixels"
# pairs up to which all are compared, to count what clusters miss; rows that brute force compares at once
ALL_PAIRS, BLOCK = 20_000, 1_000


def write_pairs(folder: Path, images: np.ndarray, texts: np.ndarray) -> None:
    """Write embeddings as `hf-clip embed --text-column` does."""
    settings: dict[str, Any] = {"model": "none", "dtype": "float32", "normalize": True, "dim": images.shape[1]}
    settings |= {"probe": images[0].tolist(), "row_dtype": "float32", "text_column": "caption"}
    with PartStore(str(folder), settings, 1e-3, part_rows=PART, columns={"caption": pa.string()}) as store:
        for start in range(0, len(images), PART):
            names = [f"{number:07}.jpg" for number in range(start, min(start + PART, len(images)))]
            batch = {"key": names, "path": names, "version": names, "caption": names, "error": [None] * len(names)}
            rows = {"embedding": images[start : start + PART], "text_embedding": texts[start : start + PART]}
            store.append({**batch, **rows})
        store.flush()


def with_copies(count: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs of which a third of the images repeat another one with some noise."""
    images, texts = two_cones(count, count, dim)
    rng = np.random.default_rng(1)
    copies, originals = np.split(rng.permutation(count)[: 2 * (count // 3)], 2)
    noise = rng.uniform(0, 0.5, (len(copies), 1)) * unit(rng.standard_normal((len(copies), dim)))
    images[copies] = unit(images[originals] + noise)
    return images, texts


def select(count: int, dim: int, threshold: float) -> dict[str, Any]:
    """Time filter and dedup on `count` pairs, beside reading the parts alone; compare the rows with brute force."""
    images, texts = with_copies(count, dim)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pairs(root / "pairs", images, texts)
        place, _ = open_parts(str(root / "pairs"))
        found: dict[str, Any] = {"read alone": timed(lambda: [None for _ in iter_part_columns(place)])}
        found["filter"] = timed(lambda: filter_pairs(str(root / "pairs"), str(root / "filtered"), top=0.3))
        found["dedup"] = timed(lambda: drop_duplicates(str(root / "pairs"), str(root / "unique"), threshold))
        kept = {name: kept_keys(root / name) for name in ("filtered", "unique")}
    scores = np.einsum("nd,nd->n", images.astype(np.float64), texts.astype(np.float64))
    best = np.flatnonzero(scores >= np.sort(scores)[::-1][int(0.3 * count)])
    clusters = cluster_rows(images, cluster_count(count))
    unique = np.flatnonzero(~brute_duplicates(images, threshold, clusters))
    for name, rows in (("filtered", best), ("unique", unique)):
        found[f"{name} rows"] = len(rows)
        found[f"{name} equals brute force"] = kept[name] == {f"{row:07}.jpg" for row in rows}
    if count <= ALL_PAIRS:
        found["dropped with one cluster"] = int(semantic_duplicates(images, threshold, cluster_rows(images, 1)).sum())
    return found


def kept_keys(folder: Path) -> set[str]:
    place, _ = open_parts(str(folder))
    return {key for part in iter_part_columns(place, []) for key in part.table["key"].to_pylist()}


def brute_duplicates(rows: np.ndarray, threshold: float, clusters: Any) -> np.ndarray:
    """Return True for each row that reaches the threshold with an earlier member of its sorted cluster."""
    dropped = np.zeros(len(rows), bool)
    for number in np.unique(clusters.numbers):
        members = np.flatnonzero(clusters.numbers == number)
        members = members[np.argsort(clusters.similarity[members], kind="stable")]
        values = rows[members].astype(np.float64)
        for start in range(0, len(members), BLOCK):
            block = values[start : start + BLOCK]
            cosines = values[: start + len(block)] @ block.T
            cosines[start:][np.tril_indices(len(block))] = -1  # itself and those after it
            dropped[members[start : start + BLOCK]] = cosines.max(0) >= threshold - 1e-6
    return dropped


def suspects(family: str, seeds: int) -> dict[str, float]:
    """Flip 5 % of the digits' labels and put shapes among them; return the precision and recall of suspects."""
    pictures, targets, names, template = digits()
    pictures += shapes(1)[0][:ODD]
    if family == PIXELS:
        small = np.stack([np.asarray(image.convert("L").resize((8, 8)), np.float32).ravel() for image in pictures])
        embeds = normalize(torch.from_numpy(small - small.mean(0)), dim=1)
        texts = torch.zeros(len(pictures), len(names))
    else:
        texts, embeds, _ = embedded(family, (pictures, targets + [0] * ODD, names, template))
    right, found = torch.tensor(targets), []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        flipped = rng.permutation(len(right))[: round(FLIPPED * len(right))]
        given = right.clone()
        given[flipped] = (given[flipped] + torch.from_numpy(rng.integers(1, 10, len(flipped)))) % 10
        places, probabilities = held_out_probabilities(texts[:-ODD], embeds[:-ODD], given, seed=seed)
        wrong, better, _ = wrong_labels(probabilities, given[places])
        named = set(places[wrong].tolist())
        hits = len(named & set(flipped.tolist()))
        accuracy = float((probabilities.argmax(1) == right[places]).float().mean())
        wholly = float((better == right[places][wrong]).float().mean())
        found.append((accuracy, hits / max(len(named), 1), hits / len(flipped), wholly))
    accuracy, precision, recall, suggested = np.mean(found, 0).tolist()
    labels = {
        "accuracy of the heads": accuracy,
        "wrong labels, precision": precision,
        "wrong labels, recall": recall,
        "right label suggested": suggested,
    }
    if family == PIXELS:
        return labels
    far, odd = set(outliers(embeds)[0].tolist()), set(range(len(right), len(right) + ODD))
    return labels | {
        "shapes among digits, precision": len(far & odd) / max(len(far), 1),
        "shapes among digits, recall": len(far & odd) / ODD,
    }


def main(
    count: Annotated[int, typer.Option("--pairs", help="Pairs to filter and to deduplicate.")] = 100_000,
    dim: Annotated[int, typer.Option(help="Dimensions of their embeddings.")] = 512,
    threshold: Annotated[float, typer.Option(help="The least cosine of duplicates.")] = 0.95,
    families: Annotated[str, typer.Option(help="Families of the models of examples/, or pixels.")] = "pixels,vit",
    seeds: Annotated[int, typer.Option(help="Draws of flipped labels.")] = 5,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the numbers.")] = Path(
        "build/benchmarks/curation.json"
    ),
) -> None:
    """Measure filter and dedup on drawn pairs, and suspects on digits.

    Example: python -m benchmarks.curation --pairs 20000
    """
    console = Console(width=max(100, Console().width))
    console.print(describe(torch.device("cpu")))
    found = {f"{count:,} x {dim}": select(count, dim, threshold)} if count else {}
    found |= {f"digits, shapes-{family}": suspects(family, seeds) for family in filter(None, families.split(","))}
    for name, numbers in found.items():
        console.print(name, {key: round(value, 3) for key, value in numbers.items()})
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=1, default=float) + "\n")


if __name__ == "__main__":
    typer.run(main)
