"""What is timed is the same computation: every peer of every row, on tiny models."""

import pytest
import torch
from support.originals import FAMILIES
from torch.nn.functional import normalize

from benchmarks import cuda, drop_in, imports, invariance, report, training
from benchmarks.common import ORIGINAL, Row, in_fresh_process, rows_of, take_turns
from benchmarks.encode import text_cases
from benchmarks.peers import EXACT, OPTIMIZED, Peers, build


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
    assert not torch.equal(embeds[OPTIMIZED], embeds[ORIGINAL])
    assert max(distances(embeds).values()) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fp16_mix_is_compared_and_timed(family):
    device = torch.device("cpu")
    models = cuda.build(family, device)
    lines = cuda.compare(models, device)
    assert [f"{method}, {EXACT}: the original's bits" in lines for method in ("encode_image", "encode_text")] == [
        True
    ] * 2
    assert [line.split(":")[0] for line in cuda.saturate(models, device, 1, 1)] == ["batch 1"]


def test_bits_are_counted_over_batches_and_threads(peers):
    pixels = torch.randn(invariance.IMAGES, 3, peers.resolution, peers.resolution)
    equal, total = invariance.equal_rows(peers.exact, pixels, deterministic=True)
    assert equal == total == 2 * len(invariance.BATCHES) * len(pixels)


@torch.no_grad()
@pytest.mark.parametrize("case", text_cases())
def test_peers_embed_texts_alike(peers, case):
    texts = text_cases()[case]
    assert len(set(texts)) == len(texts) == 64
    embeds = {peer: encode(texts) for peer, encode in peers.texts().items()}
    assert max(distances(embeds).values()) < 1e-6


@pytest.mark.training
def test_peers_train_alike(peers):
    """All give one loss, and mini-batches take less memory."""
    batch = training.pairs(peers, 6)
    whole, parts = training.whole_batch(peers, batch), training.mini_batches(peers, batch, 2)
    assert len(whole) == (3 if peers.stock else 2)
    losses = [step() for step in (*whole.values(), *parts.values())]
    assert max(losses) - min(losses) < 1e-4
    for peer, step in parts.items():
        assert peer == training.SENTENCES or training.saved_bytes(step) < training.saved_bytes(whole[peer])


def test_the_drop_in_computes_the_same(family):
    """Bits of embeddings and losses; what is noted of memory is the same too."""
    pair = drop_in.build(family)
    pixels, ids = drop_in.inputs(pair[ORIGINAL])
    assert torch.equal(*(model.encode_image(pixels) for model in pair.values()))
    assert torch.equal(*(model.encode_text(ids) for model in pair.values()))
    steps = [drop_in.step(model, pixels, ids[: len(pixels)]) for model in pair.values()]
    assert torch.equal(*(step() for step in steps))
    assert drop_in.saved_mib(steps[1]) <= drop_in.saved_mib(steps[0])
    rows = drop_in.measure(1, (family,))
    assert [row.peer for row in rows].count(drop_in.OPTIMIZED) == 2
    assert len(rows) == 8


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


def test_a_run_that_was_stopped_goes_on(tmp_path):
    calls = []

    def measure() -> list[Row]:
        calls.append(1)
        return rows_of("loading", "model", {ORIGINAL: 3.0, "hf_clip": 2.0}, 4)

    file = tmp_path / "parts" / "load.json"
    for rounds, measured in ((5, 1), (5, 1), (6, 2)):
        rows = report.rows_once(file, {"rounds": rounds}, measure)
        assert [row.ratio for row in rows] == [1.0, 1.5]
        assert len(calls) == measured


@pytest.mark.parametrize("code", imports.HELP.values())
def test_what_is_timed_in_fresh_processes_runs(code):
    seconds, mebibytes = in_fresh_process("-c", code)
    assert seconds > 0
    assert 1 < mebibytes < 200  # of that process, not of this one, which holds torch


def test_a_fresh_process_that_fails_is_not_timed():
    with pytest.raises(RuntimeError, match="absent"):
        in_fresh_process("-c", "import absent")
