"""What is timed is the same computation: every peer of every row, on tiny models."""

import pytest
import torch
from helpers import FAMILIES
from torch.nn.functional import normalize

from benchmarks import report
from benchmarks.common import ORIGINAL, rows_of, take_turns
from benchmarks.encode import text_cases
from benchmarks.peers import EXACT, OPTIMISED, Peers, build


@pytest.fixture(params=FAMILIES, scope="module")
def peers(request) -> Peers:
    return build(request.param, torch.device("cpu"))


def distances(embeds: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest distance of each peer's unit-norm embeddings from the original's."""
    unit = {peer: normalize(rows.double(), dim=-1) for peer, rows in embeds.items()}
    return {peer: (rows - unit[ORIGINAL]).norm(dim=-1).max().item() for peer, rows in unit.items()}


@torch.no_grad()
def test_peers_embed_images_alike(peers):
    pixels = torch.randn(3, 3, peers.resolution, peers.resolution)
    embeds = {peer: encode(pixels) for peer, encode in peers.images().items()}
    assert len(embeds) == (5 if peers.stock else 4)
    assert torch.equal(embeds[EXACT], embeds[ORIGINAL])
    assert not torch.equal(embeds[OPTIMISED], embeds[ORIGINAL])
    assert max(distances(embeds).values()) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("case", text_cases())
def test_peers_embed_texts_alike(peers, case):
    texts = text_cases()[case]
    assert len(set(texts)) == len(texts) == 64
    embeds = {peer: encode(texts) for peer, encode in peers.texts().items()}
    assert max(distances(embeds).values()) < 1e-6


def test_report(tmp_path):
    """Medians of turns, as ratios, in one file and one chart from several runs."""
    calls = []
    ways = {ORIGINAL: lambda: calls.append("a"), "hf_clip": lambda: calls.append("b")}
    assert take_turns(ways, rounds=3, label="").keys() == ways.keys()
    assert [{*calls[turn : turn + 2]} for turn in range(0, 8, 2)] == [{"a", "b"}] * 4
    assert len(calls) == 8
    rows = rows_of("loading", "model", {ORIGINAL: 3.0, "hf_clip": 2.0}, 4, flops=12.0, peak=12.0)
    assert [(row.ratio, row.per_second, row.share) for row in rows] == [(1.0, 4 / 3, 1 / 3), (1.5, 2.0, 0.5)]
    for number in (0, 1):
        report.write_json(rows, "a machine", {"torch": "2"}, tmp_path / f"{number}.json")
    report.main([tmp_path / "0.json", tmp_path / "1.json"], tmp_path / "both")
    assert (tmp_path / "both" / "results.json").read_text().count('"case"') == 4
    assert (tmp_path / "both" / "results.png").read_bytes().startswith(b"\x89PNG")
