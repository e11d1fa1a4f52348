"""The app behind its own server: its answers are the library's, and what it refuses."""

import json
import os
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image
from support.commands import run
from support.image_corpus import random_image
from support.plain import load

from hf_clip import ZeroShotClassifier
from hf_clip.data.requests import MAX_PIXELS
from hf_clip.search.index import ImageIndex

pytestmark = pytest.mark.integration
SPACE = Path(__file__).parents[2] / "examples" / "space"
LABELS = ["a cat", "two dogs", "a diagram"]
TEMPLATES = ["a photo of a {}.", "a drawing of {}"]
CLASSIFY = ["\n".join(LABELS), "\n".join(TEMPLATES), 3]


@pytest.fixture(scope="module")
def index(repositories, tmp_path_factory) -> ImageIndex:
    folder, clip = tmp_path_factory.mktemp("indexed"), load(repositories["tiny ViT"])
    for seed in range(6):
        random_image("RGB", 40, 30 + seed, np.random.default_rng(seed)).save(folder / f"{seed}.png")
    embeddings = folder.with_suffix(".safetensors")
    assert run("embed", folder, "--output", embeddings, "--model", clip.folder) == 0
    return ImageIndex.build(embeddings, folder.with_suffix(".index"), clip.model, clip.processor, folder=folder)


@pytest.fixture(scope="module")
def address(repositories, index):
    pytest.importorskip("gradio")
    from hf_clip.app.page import build_page, launch_page

    clips = [load(repositories[name]) for name in ("tiny ViT", "tiny ResNet")]
    page = build_page(*((clip.model, clip.processor) for clip in clips), index=index)
    yield launch_page(page, wait=False)
    page.close()


def connect(address: str):
    from gradio_client import Client

    return Client(address, verbose=False, httpx_kwargs={"timeout": 120})  # fifty at once on a busy machine


@pytest.fixture(scope="module")
def client(address):
    return connect(address)


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, path in enumerate(paths):
        random_image("RGB", 40 + seed, 70 - seed, np.random.default_rng(seed)).save(path)
    return paths


def ask(client, name: str, path: Path, *arguments):
    from gradio_client import handle_file

    return client.predict(handle_file(str(path)), *arguments, api_name=f"/{name}")


def scores(answer: dict) -> dict[str, float]:
    return {each["label"]: each["confidence"] for each in answer["confidences"]}


def test_listens_to_this_machine_alone(address):
    assert address.startswith("http://127.0.0.1:")


def test_fifty_requests_at_once_get_the_library_s_answers(address, photos, repositories):
    clip = load(repositories["tiny ViT"])
    classifier = ZeroShotClassifier(clip.model, clip.processor, LABELS, TEMPLATES)
    expected = [{each["label"]: each["score"] for each in answers} for [answers] in map(classifier, map(str, photos))]

    def visit(place: int) -> dict:
        # a client of its own, as visitors have: threads that share one lose answers when its stream closes and opens
        return ask(connect(address), "classify", photos[place % 5], *CLASSIFY)

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(visit, range(50)))
    for place, answer in enumerate(found):
        assert scores(answer) == pytest.approx(expected[place % 5], abs=1e-6)


def test_compare_asks_both_models(client, photos, repositories):
    answers = ask(client, "compare", photos[0], *CLASSIFY)
    for answer, name in zip(answers, ("tiny ViT", "tiny ResNet"), strict=True):
        clip = load(repositories[name])
        [expected] = ZeroShotClassifier(clip.model, clip.processor, LABELS, TEMPLATES)(str(photos[0]))
        assert scores(answer) == pytest.approx({each["label"]: each["score"] for each in expected}, abs=1e-5)


@pytest.mark.parametrize("method", ["dense", "gradient", "rollout"])
def test_where_draws(client, photos, method):
    plot = ask(client, "where", photos[0], "a cat\na dog", method, True)
    assert plot["plot"].startswith("data:image/")


def test_search_finds_what_the_index_finds(client, index, photos):
    from gradio_client import handle_file

    for upload, texts in ((None, "a cat"), (photos[0], "a cat\na dog"), (photos[1], "")):
        given = None if upload is None else handle_file(str(upload))
        found = client.predict(given, texts, 3, upload is not None, api_name="/search")
        images = [] if upload is None else [Image.open(upload)]
        expected = index.search(texts.splitlines(), image=images, k=3)
        assert [each["caption"] for each in found] == [f"{hit['score']:.3f} {hit['path']}" for hit in expected]


def test_what_is_no_image_is_refused_in_a_sentence(client, tmp_path, photos):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "large.png").write_bytes(b"")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    for path, arguments, problem in (
        (tmp_path / "notes.txt", CLASSIFY, "the file cannot be read as an image"),
        (tmp_path / "large.png", CLASSIFY, f"100,000,000 pixels, at most {MAX_PIXELS:,} are read"),
        (photos[0], ["", "", 3], "there are no labels: write one per line"),
        (photos[0], ["a cat", "no place", 3], "needs {}"),
        (photos[0], ["long " * 99, "", 3], "tokens, the model reads 77"),
    ):
        with pytest.raises(Exception, match=problem) as caught:
            ask(client, "classify", path, *arguments)
        assert str(tmp_path) not in str(caught.value)
        assert "gradio/" not in str(caught.value)


def test_large_uploads_are_refused(client, tmp_path):
    (tmp_path / "large.bin").write_bytes(bytes(21_000_000))
    with pytest.raises(Exception, match=r"413|exceeded|maximum"):
        ask(client, "classify", tmp_path / "large.bin", *CLASSIFY)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", __file__])
def test_no_file_of_the_machine_is_served(address, client, path):
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{address}gradio_api/file={path}")
    assert refused.value.code in (403, 404)
    with pytest.raises(Exception) as caught:  # noqa: PT011 (gradio's own, of several kinds)
        client.predict({"path": path, "meta": {"_type": "gradio.FileData"}}, *CLASSIFY, api_name="/classify")
    assert "root:" not in str(caught.value)
    assert "confidences" not in json.dumps(str(caught.value))


@pytest.mark.parametrize("name", ["classify", "where", "compare", "search"])
def test_no_image_of_the_machine_is_read(address, photos, name):
    """A request without `meta` passes Gradio's own check of paths, whatever path it has."""
    fifo = photos[0].with_name("pipe.png")
    os.mkfifo(fifo)
    rest = {"classify": CLASSIFY, "compare": CLASSIFY, "where": ["a cat", "dense", True], "search": ["", 3, True]}[name]
    for path in (photos[0], fifo):
        for value in ({"path": str(path)}, {"path": str(path), "url": None, "orig_name": "x.png"}):
            posted = Request(
                f"{address}gradio_api/call/{name}",
                json.dumps({"data": [value, *rest]}).encode(),
                {"Content-Type": "application/json"},
            )
            event = json.load(urlopen(posted, timeout=300))["event_id"]
            answer = urlopen(f"{address}gradio_api/call/{name}/{event}", timeout=300).read().decode()
            assert answer.startswith("event: error"), answer
            assert "confidences" not in answer
            assert "data:image" not in answer


def test_uploads_are_deleted(index, repositories):
    from hf_clip.app.page import DELETE_AFTER, DELETE_EVERY, build_page

    clip = load(repositories["tiny ViT"])
    page = build_page((clip.model, clip.processor))
    assert page.delete_cache == (DELETE_EVERY, DELETE_AFTER)


def test_space(repositories, monkeypatch, photos):
    """Its files are there, and its page is the app's."""
    pytest.importorskip("gradio")
    monkeypatch.setenv("MODEL", str(repositories["tiny ViT"]))
    demo = runpy.run_path(str(SPACE / "app.py"))["demo"]
    names = {function.api_name for function in demo.fns.values()}
    assert names - {"load_example"} == {"classify", "where"}
    metadata = SPACE.joinpath("README.md").read_text().split("---")[1]
    assert {"sdk: gradio", "app_file: app.py"} <= set(metadata.splitlines())
    assert "hf_clip[app]" in SPACE.joinpath("requirements.txt").read_text()
