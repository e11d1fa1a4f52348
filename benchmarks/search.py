"""Search among synthetic vectors of images and texts, and the first answer from the command line."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from examples.train_shapes import CHECKPOINTS
from hf_clip import ImageIndex, load_clip
from hf_clip.openai.convert import convert
from hf_clip.search import exact, graph
from hf_clip.search.codes import nearest_by_codes, write_codes
from hf_clip.search.tuning import tune

from .common import Row, rows_of, take_turns, timed
from .vectors import two_cones

DIM, K, QUERIES = 512, 10, 64
REPEATED = 100
SIZES = (100_000, 1_000_000)
GRAPH_SIZE = 100_000
NUMPY = "NumPy, all at once"
TOWER = "import torch, load the text tower"
LOAD = "import sys; from hf_clip.loading import load_text_tower; load_text_tower(sys.argv[1])"


def measure(rounds: int) -> list[Row]:
    """Measure one text among many images, and a command."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for size in SIZES for row in queries(size, Path(folder), rounds)]
        return [*rows, *first_answer(Path(folder), rounds)]


def queries(size: int, folder: Path, rounds: int) -> list[Row]:
    """One query among `size` float16 rows in a memory map; the graph's recall on texts is noted."""
    texts = two_cones(1, QUERIES, DIM)[1]
    rows = write_rows(folder / f"{size}.npy", size)
    ways = {
        NUMPY: lambda: np.argsort(-(rows.astype(np.float32) @ texts[0]))[:K],
        "exact": lambda: exact.nearest(rows, texts[:1], K),
    }
    notes = {"exact": f"{tail(ways['exact'])}; {rows.nbytes / 1e6:,.0f} MB read"}
    codes = write_codes(rows, folder / "codes.npy")
    candidates, recall = tune(partial(nearest_by_codes, codes, rows), rows, texts, 0.99)
    ways["int8"] = lambda: nearest_by_codes(codes, rows, texts[:1], K, candidates)
    read = (codes.values.nbytes + candidates * rows[0].nbytes) / 1e6
    told = f"recall {recall:.1%} on {QUERIES} texts, {candidates} candidates"
    notes["int8"] = f"{tail(ways['int8'])}; {read:,.0f} MB read; {told}"
    if size <= GRAPH_SIZE:
        tree = graph.new_graph(DIM)
        graph.grow(tree, rows)
        expansion, recall = tune(partial(graph.nearest_in_graph, tree, rows), rows, texts, 0.95)
        ways["hnsw"] = lambda: graph.nearest_in_graph(tree, rows, texts[:1], K, expansion)
        notes["hnsw"] = f"{tail(ways['hnsw'])}; recall {recall:.1%} on {QUERIES} texts, {expansion} candidates"
    case = f"1 text, {size:,} x {DIM} float16"
    return rows_of("search", case, take_turns(ways, rounds, case), 1, NUMPY, notes=notes)


def tail(query: Callable[[], object]) -> str:
    """Median and 99th percentile of one way's calls in a row, as a service would answer them."""
    p50, p99 = np.percentile([timed(query) * 1e3 for _ in range(REPEATED)], (50, 99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms of {REPEATED} in a row"


def write_rows(path: Path, size: int) -> np.ndarray:
    """Write `size` rows, GRAPH_SIZE different ones over and over, and map them."""
    block = two_cones(GRAPH_SIZE, 1, DIM)[0]
    written = np.lib.format.open_memmap(path, "w+", np.float16, (size, DIM))
    for start in range(0, size, GRAPH_SIZE):
        written[start : start + GRAPH_SIZE] = block
    written.flush()
    return np.load(path, mmap_mode="c")


def first_answer(folder: Path, rounds: int) -> list[Row]:
    """`hf-clip search` from start to end, beside its unavoidable parts."""
    model = folder / "clip"
    convert(str(CHECKPOINTS["vit"]), model, report=lambda _: None)
    (folder / "photos").mkdir()
    Image.radial_gradient("L").convert("RGB").save(folder / "photos/one.png")
    command = [sys.executable, "-m", "hf_clip"]
    embed = ["embed", folder / "photos", "-o", folder / "f.npy", "-m", model]
    subprocess.run([*command, *map(str, embed)], check=True, capture_output=True)
    ImageIndex.build(folder / "f.npy", folder / "i", *load_clip(model))
    ways = {
        TOWER: lambda: subprocess.run([sys.executable, "-c", LOAD, str(model)], check=True, capture_output=True),
        "hf-clip search": lambda: subprocess.run(
            [*command, "search", str(folder / "i"), "a red car"], check=True, capture_output=True
        ),
    }
    return rows_of("search", "first answer of a command", take_turns(ways, rounds, "commands"), 1, TOWER)
