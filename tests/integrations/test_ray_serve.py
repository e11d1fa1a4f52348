"""The server as a Ray Serve application on two nodes: answers equal, and a killed replica loses nothing to a retry."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from support.plain import load
from support.requests import encoded, image_file, opened

import hf_clip

pytestmark = pytest.mark.integration
ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve")
psutil = pytest.importorskip("psutil")
ROOT = Path(__file__).parents[2]
PORT = 18437
COUNT = 300


@pytest.fixture(scope="module")
def address(repositories):
    """Two replicas on two nodes of loopback."""
    from ray import serve
    from ray.cluster_utils import Cluster

    from hf_clip.serving.ray import RayArguments, app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        arguments = RayArguments(source=str(repositories["tiny ViT"]), min_replicas=2, max_replicas=2, num_cpus=0.5)
        serve.run(app(arguments))
        yield f"http://127.0.0.1:{PORT}"
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def replicas() -> list[int]:
    """Return the processes of the replicas."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any("ServeReplica:default:hf_clip" in part for part in process.info["cmdline"] or [])
    ]


def test_a_killed_replica_loses_no_request_that_is_tried_again(address, repositories):
    clip = load(repositories["tiny ViT"])
    texts = [f"a thing of number {number}" for number in range(20)]
    contents = [image_file(seed) for seed in range(10)]
    text_rows = hf_clip.embed_texts(clip.model, clip.processor, texts).numpy()
    image_rows = hf_clip.embed_images(clip.model, clip.processor, [*map(opened, contents)]).numpy()
    retried, killed = [], threading.Event()

    def ask(number: int) -> float:
        text, image = number % len(texts), number % len(contents)
        body = {"input": [texts[text], {"image": encoded(contents[image])}]}
        for _ in range(60):
            try:
                answer = httpx2.post(f"{address}/v1/embeddings", json=body, timeout=60)
            except httpx2.TransportError as error:
                retried.append(error)
            else:
                if answer.status_code == 200:
                    rows = np.array([row["embedding"] for row in answer.json()["data"]], np.float32)
                    return float(np.abs(rows - [text_rows[text], image_rows[image]]).max())
                assert answer.status_code in (500, 503), answer.text
                retried.append(answer.status_code)
            time.sleep(0.5)
        raise AssertionError("60 attempts failed")

    def kill() -> None:
        time.sleep(1)
        [first, *_] = replicas()
        os.kill(first, 9)
        killed.set()

    assert ask(0) <= 1e-6
    before = set(replicas())
    assert len(before) == 2
    threading.Thread(target=kill).start()
    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(ask, range(COUNT)))
        assert killed.wait(20)
        errors += pool.map(ask, range(COUNT, COUNT + 50))
    assert max(errors) <= 1e-6
    assert len(retried) < 60, retried
