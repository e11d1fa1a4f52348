"""Time and memory of imports and of help, each time in a fresh process."""

from statistics import median

from tqdm import tqdm

from .common import Row, in_fresh_process, rows_of

BASE = "import torch, transformers"
LIBRARIES = {
    BASE: BASE,
    "hf_clip: import hf_clip": "import hf_clip",
    "hf_clip: import torch, transformers, hf_clip": f"{BASE}, hf_clip",
    "hf_clip: from hf_clip import HFCLIPModel": "from hf_clip import HFCLIPModel",
}
PYTHON = "python"
HELP = {
    PYTHON: "pass",
    "hf_clip: hf-clip --help": "import sys; sys.argv[1:] = ['--help']; from hf_clip_command import main; main()",
    "hf_clip: hf-clip classify --help": (
        "import sys; sys.argv[1:] = ['classify', '--help']; from hf_clip_command import main; main()"
    ),
}


def measure(rounds: int) -> list[Row]:
    """Measure the seconds of fresh processes that take turns; the note has their peak memory."""
    return [*_rows("import", LIBRARIES, BASE, rounds), *_rows("help", HELP, PYTHON, rounds)]


def _rows(case: str, ways: dict[str, str], baseline: str, rounds: int) -> list[Row]:
    turns = [
        {way: in_fresh_process("-c", code) for way, code in ways.items()}
        for _ in tqdm(range(rounds + 1), desc=case, leave=False)
    ][1:]  # the first warms the file cache
    seconds, peak = ({way: median(turn[way][i] for turn in turns) for way in ways} for i in (0, 1))
    return rows_of("imports", case, seconds, 1, baseline, notes={way: f"{peak[way]:,.0f} MiB" for way in ways})
