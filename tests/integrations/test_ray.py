"""Embedding on a cluster of two Ray nodes on loopback equals embedding on one machine, whatever dies."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import run
from support.embeddings import kept_rows
from support.originals import FAMILIES
from support.photos import draw, load

from hf_clip.embedding.parts import iter_parts
from hf_clip.utils.places import place_at

pytestmark = pytest.mark.integration
ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
ROOT = Path(__file__).parents[2]
COUNT = 400


@pytest.fixture(scope="module")
def cluster():
    """Two raylets of one core each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # another number can give other bits
        patch.setenv("RAY_worker_niceness", "0")  # beside other tests, polite workers never start
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for seed in range(COUNT):
        draw(folder / f"{seed:03d}.png", seed % 30)
    (folder / "broken.png").write_text("no image")
    return folder


def held(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for columns, rows in iter_parts(place_at(str(folder))):
        found |= dict(zip(columns["path"].to_pylist(), rows, strict=True))
    return found


def rows(folder: Path) -> list[str]:
    import pyarrow.dataset as ds

    return sorted(ds.dataset(folder, format="parquet").to_table()["key"].to_pylist())


def embed(model, many: Path, output: Path, *options) -> int:
    arguments = ["--batch-size", 8, "--part-rows", 16, *options]
    return run("embed", many, "-o", output, "-m", model, *arguments)


def kill_a_worker(output: Path, killed: list[int]) -> None:
    """Kill one of the workers that decode or compute, once the first part is there."""
    while not list(output.glob("part-*")):
        time.sleep(0.05)
    for process in psutil.process_iter(["cmdline"]):
        if "MapWorker(MapBatches(OnArrow))" in " ".join(process.info["cmdline"] or []):
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)
            return


def test_two_nodes_give_what_one_machine_gives_and_a_killed_worker_loses_nothing(
    cluster, many, repositories, tmp_path, capsys
):
    model = repositories[FAMILIES[1]]
    assert embed(model, many, tmp_path / "one") == 0
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "two", killed), daemon=True)
    killer.start()
    capsys.readouterr()
    assert embed(model, many, tmp_path / "two", "--engine", "ray", "--address", cluster.address) == 0
    killer.join(60)
    assert killed
    assert f"1 of {COUNT + 1} images could not be read (broken.png)" in capsys.readouterr().err
    one, two = held(tmp_path / "one"), held(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [key for key in one if not np.array_equal(one[key], two[key])] == []
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    before = set((tmp_path / "two").iterdir())
    assert embed(model, many, tmp_path / "two", "--engine", "ray", "--address", "nowhere:1") == 0
    assert set((tmp_path / "two").iterdir()) == before  # nothing to do, and so no cluster to ask


def test_a_filter_on_the_cluster_keeps_what_it_keeps_here(cluster, many, repositories, tmp_path, monkeypatch, capsys):
    rows = [{"image": str(path), "text": f"photo {path.stem}"} for path in sorted(many.glob("0[0-4]*.png"))]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["filter", tmp_path / "pairs.jsonl", "--top", 0.3, "--model", repositories[FAMILIES[0]]]
    arguments += ["--allow-scheme", "file"]
    assert run(*arguments, "--output", tmp_path / "here") == 0
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    capsys.readouterr()
    assert run(*arguments, "--output", tmp_path / "ray", "--engine", "ray") == 0
    assert f"16 of {len(rows)} pairs have a CLIP score" in capsys.readouterr().out
    here, there = kept_rows(tmp_path / "here"), kept_rows(tmp_path / "ray")
    assert here == there


def test_the_callables_run_in_ray_data(cluster, many, repositories):
    from hf_clip import ImageEmbedder, ImagePreprocessor

    model = str(repositories[FAMILIES[0]])
    paths = sorted(map(str, many.glob("0*.png")))[:16]
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        data = ray.data.from_items([{"image": path} for path in paths]).repartition(1)
        found = (
            data.map_batches(ImagePreprocessor(model), batch_size=8)
            .map_batches(ImageEmbedder(model, batch_size=8), batch_size=8)
            .take_all()
        )
    finally:
        ray.shutdown()
    from hf_clip import embed_images

    expected = embed_images(*load(Path(model)), paths, batch_size=8).numpy()
    assert np.array_equal(np.stack([row["embedding"] for row in found]), expected)
