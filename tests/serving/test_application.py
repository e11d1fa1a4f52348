"""Routes: answers equal to the library's, and refusals that name what is wrong."""

import asyncio
import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from support.commands import run
from support.plain import load
from support.requests import app_of, encoded, image_file, opened, running
from support.served import serving

import hf_clip
from hf_clip.embedding.texts import token_ids
from hf_clip.search.index import ImageIndex
from hf_clip.serving import addresses
from hf_clip.serving.engine import ServedModel

TEXTS = ["a cat", "two dogs in the rain", "x", "a photograph of a harbour with seven small boats"]
# embeddings of length 1: a batch of another composition rounds differently
BOUND = 1e-6
DATA_URI = f"data:image/png;base64,{encoded(image_file())}"


def embeddings(response) -> np.ndarray:
    assert response.status_code == 200, response.text
    rows = [row["embedding"] for row in response.json()["data"]]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows, np.float32)


def post(client, path: str, body) -> object:
    return client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})


def assert_refused(response, status: int, problem: str) -> None:
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert problem in message
    assert "\n" not in message
    assert not message.endswith(".")


@pytest.mark.parametrize("name", ["tiny ViT", "tiny ResNet", "transformers"])
def test_embeddings_equal_the_library_s(folders, name):
    """Both families and transformers' own CLIP, as texts, ids and images in all forms of clients."""
    clip = load(folders[name])
    content = image_file()
    ids = token_ids(clip.processor, TEXTS)
    inputs = [
        *TEXTS, *ids, {"text": TEXTS[0]},
        {"image": encoded(content)}, {"image": f"data:image/png;base64,{encoded(content)}"},
        f"data:image/png;base64,{encoded(content)}",
    ]  # fmt: skip
    texts = hf_clip.embed_texts(clip.model, clip.processor, TEXTS).numpy()
    [image] = hf_clip.embed_images(clip.model, clip.processor, [opened(content)]).numpy()
    expected = np.stack([*texts, *texts, texts[0], image, image, image])
    with TestClient(app_of(clip)) as client:
        answer = post(client, "/v1/embeddings", {"input": inputs, "model": "tiny"})
        np.testing.assert_allclose(embeddings(answer), expected, rtol=0, atol=BOUND)
        assert answer.json()["usage"]["prompt_tokens"] == 2 * sum(map(len, ids)) + len(ids[0])
        assert [row["index"] for row in answer.json()["data"]] == list(range(len(inputs)))
        coded = post(client, "/v1/embeddings", {"input": inputs, "encoding_format": "base64"})
        assert np.array_equal(embeddings(coded), embeddings(answer))
        raw = embeddings(post(client, "/v1/embeddings", {"input": "a cat", "normalize": False}))
        unit = raw / np.linalg.norm(raw)
        np.testing.assert_allclose(unit, texts[:1], rtol=0, atol=BOUND)
        assert abs(np.linalg.norm(raw) - 1) > 1e-3


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("a cat", "text"),
        ([{"type": "text", "text": "a cat"}], "text"),
        ([{"type": "image_url", "image_url": {"url": DATA_URI}}], "image"),
    ],
)
def test_messages_hold_one_text_or_image(client, clip, content, kind):
    found = embeddings(post(client, "/v1/embeddings", {"messages": [{"role": "user", "content": content}]}))
    expected = (
        hf_clip.embed_texts(clip.model, clip.processor, ["a cat"])
        if kind == "text"
        else hf_clip.embed_images(clip.model, clip.processor, [opened(image_file())])
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=BOUND)


def test_long_texts_are_cut_only_when_asked(client, clip):
    long = "word " * 100
    assert_refused(
        post(client, "/v1/embeddings", {"input": ["a", long]}), 422, "input[1] has 102 tokens, the model reads 77"
    )
    found = embeddings(post(client, "/v1/embeddings", {"input": long, "truncate": True}))
    expected = hf_clip.embed_texts(clip.model, clip.processor, [long], truncation=True)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=BOUND)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
BROKEN = [
    ("%%%", "it is not valid base64"),
    ("", "cannot be read as an image"),
    (encoded(SVG), "cannot be read as an image: upload one of PNG, JPEG"),
    ("data:image/svg+xml;base64," + encoded(SVG), "cannot be read as an image"),
    ("data:image/svg+xml,%3Csvg%2F%3E", "not in base64"),
    (encoded(image_file(format="JPEG", size=(900, 600))[:5000]), "cannot be read as an image"),
    (
        encoded(image_file(format="GIF", save_all=True, append_images=[Image.new("RGB", (60, 40), "red")])),
        "the GIF has several frames",
    ),
    ("https://example.com/a.png", "images are not downloaded by this server"),
    ("file:///etc/passwd", "it is not valid base64"),
    ("/etc/passwd", "it is not valid base64"),
]


@pytest.mark.parametrize(("image", "problem"), BROKEN)
def test_a_bad_image_is_named(client, image, problem):
    for path, body, param in (
        ("/v1/embeddings", {"input": ["a", {"image": image}]}, "input[1]"),
        ("/classify", {"image": image}, "image"),
        ("/score", {"images": [encoded(image_file()), image], "texts": ["a"]}, "images[1]"),
        ("/where", {"image": image, "texts": ["a"]}, "image"),
    ):
        refused = post(client, path, body)
        assert_refused(refused, 422, problem)
        assert refused.json()["error"]["param"] == param


def test_large_images_are_refused_by_their_header(client):
    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    assert_refused(
        post(client, "/v1/embeddings", {"input": {"image": encoded(file.getvalue())}}), 422, "64,000,000 pixels"
    )


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ({}, 422, "input and messages: send one of the two"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, 422, "send one of the two"),
        ({"input": []}, 422, "input: list should have at least 1 item"),
        ({"input": ""}, 422, "input: the text is empty"),
        ({"input": ["a", " "]}, 422, "input[1]: the text is empty"),
        ({"input": ["a"] * 10_000}, 422, "input: list should have at most 2048 items"),
        ({"input": ["a", 3]}, 422, "input[1]: write a text, token ids"),
        ({"input": 3}, 422, "input: write a text"),
        ({"input": [True]}, 422, "input[0]: write a text"),
        ({"input": ["a", {"image": 3}]}, 422, "input[1].image: input should be a valid string"),
        ({"input": {"image": "a", "text": "b"}}, 422, "input.text: there is no such field"),
        ({"input": "\ud800"}, 422, "input: the text has half of a surrogate pair"),
        ({"input": "x" * 100_001}, 422, "input: the text has 100,001 characters"),
        ({"input": [1, 2, 3]}, 422, "they begin with 49406 and end with 49407; send texts instead"),
        ({"input": [[49406, 49406, 49407]]}, 422, "input[0] has no token ids of this model"),
        ({"input": [[49406, *[320] * 90, 49407]]}, 422, "input[0] has 92 tokens, the model reads 77"),
        ({"input": "a", "dimensions": 8}, 422, "this model's embeddings have 64 and cannot be cut"),
        ({"input": "a", "model": "other"}, 404, "there is no model 'other': this server has 'tiny'"),
        ({"input": "a", "normalized": False}, 422, "normalized: there is no such field"),
        ({"input": "a", "encoding_format": "int8"}, 422, "encoding_format: input should be 'float' or 'base64'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]},
            422,
            "messages have 2 parts",
        ),
        ([], 422, "the body: input should be a valid dictionary"),
        (None, 422, ""),
    ],
)
def test_embedding_requests_are_refused(client, body, status, problem):
    assert_refused(post(client, "/v1/embeddings", body), status, problem)


def test_a_body_that_is_no_json_is_refused(client):
    for path in ("/v1/embeddings", "/classify"):
        for content in (b"{", b"\xff", b"[" * 100_000, b""):
            response = client.post(path, content=content, headers={"Content-Type": "application/json"})
            assert response.status_code in (400, 422), response.text
            assert response.json()["error"]["message"]
    assert_refused(client.post("/classify", content=b"a"), 422, "send application/json or multipart/form-data")


def test_classify_gives_what_the_classifier_gives(client, clip):
    contents = [image_file(seed) for seed in range(2)]
    expected = hf_clip.ZeroShotClassifier(clip.model, clip.processor, ["a cat", "a dog"])([*map(opened, contents)])
    answer = post(client, "/classify", {"image": [*map(encoded, contents)]}).json()
    for found, wanted in zip(answer, expected, strict=True):
        assert [each["label"] for each in found] == [each["label"] for each in wanted]
        np.testing.assert_allclose([x["score"] for x in found], [x["score"] for x in wanted], atol=1e-5)
    labels, templates = ["red", "blue", "green"], ["a {} thing", "the {}"]
    [wanted] = hf_clip.ZeroShotClassifier(clip.model, clip.processor, labels, templates)(opened(contents[0]), 2)
    body = {"labels": labels, "templates": templates, "top_k": 2}
    uploaded = client.post("/classify", files={"image": ("a.png", contents[0], "image/png")}, data=body)
    for found in (post(client, "/classify", {**body, "image": encoded(contents[0])}).json(), uploaded.json()):
        assert [each["label"] for each in found] == [each["label"] for each in wanted]
        np.testing.assert_allclose([x["score"] for x in found], [x["score"] for x in wanted], atol=1e-5)


@pytest.mark.parametrize("mode", ["any", "each"])
def test_classify_knows_the_modes_of_the_classifier(client, clip, mode):
    content, labels = image_file(), ["red", "blue"]
    [wanted] = hf_clip.ZeroShotClassifier(clip.model, clip.processor, labels, mode=mode)(opened(content))
    found = post(client, "/classify", {"image": encoded(content), "labels": labels, "mode": mode}).json()
    assert [each["label"] for each in found] == [each["label"] for each in wanted]
    np.testing.assert_allclose([x["score"] for x in found], [x["score"] for x in wanted], atol=1e-5)
    refused = post(client, "/classify", {"image": encoded(content), "labels": ["stuff", "a"], "mode": mode})
    assert_refused(refused, 422, "labels: 'stuff' has a meaning of its own")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"labels": []}, "labels: list should have at least 1 item"),
        ({"labels": ["a", " "]}, "labels: one of them is empty"),
        ({"labels": ["a"], "templates": ["{:>900000000}"]}, "needs {} for the label, and no other braces"),
        ({"labels": ["a"] * 1001}, "labels: list should have at most 1000 items"),
        ({"labels": [str(i) for i in range(1000)], "templates": ["{}"] * 100}, "are 100,000 prompts, at most 4,000"),
        ({"labels": ["a", "word " * 100]}, "labels[1] has 107 tokens, the model reads 77: shorten it"),
        ({"top_k": 0}, "top_k: input should be greater than or equal to 1"),
    ],
)
def test_labels_are_refused(client, body, problem):
    assert_refused(post(client, "/classify", {"image": encoded(image_file()), **body}), 422, problem)


def test_a_server_without_labels_asks_for_some(clip):
    with TestClient(app_of(clip)) as client:
        assert_refused(
            post(client, "/classify", {"image": encoded(image_file())}), 422, "the server has none of its own"
        )


def test_a_saved_classifier_has_its_own_templates_and_mode(clip, tmp_path):
    hf_clip.ZeroShotClassifier(clip.model, clip.processor, ["a", "b"], mode="each").save(tmp_path / "saved.safetensors")
    body = {"image": encoded(image_file())}
    with TestClient(app_of(clip, classifier=str(tmp_path / "saved.safetensors"))) as client:
        for options in ({"templates": ["the {}"]}, {"mode": "any"}):
            refused = post(client, "/classify", body | options)
            assert_refused(refused, 422, f"{next(iter(options))}: the server's classifier has its own")
        answer = post(client, "/classify", body | {"labels": ["red", "blue"], "mode": "any"}).json()
    assert {each["label"] for each in answer} == {"red", "blue", "none of these"}


def test_a_classifier_of_images_that_were_read_in_another_way_is_refused(clip, tmp_path):
    classifier = hf_clip.ZeroShotClassifier(clip.model, clip.processor, ["a", "b"])
    classifier.head = replace(classifier.head, exif="apply")
    classifier.save(tmp_path / "saved.safetensors")
    saved = str(tmp_path / "saved.safetensors")
    problem = "learned from images read with exif apply, not ignore"
    with pytest.raises(ValueError, match=problem), TestClient(app_of(clip, classifier=saved)):
        pass
    with TestClient(app_of(clip, classifier=saved, exif="apply")) as client:
        assert post(client, "/classify", {"image": encoded(image_file())}).status_code == 200


def test_score_compares_each_with_each(client, clip):
    contents = [image_file(seed) for seed in range(3)]
    answer = post(client, "/score", {"images": [*map(encoded, contents)], "texts": TEXTS[:2]}).json()
    images = hf_clip.embed_images(clip.model, clip.processor, [*map(opened, contents)])
    cosines = images @ hf_clip.embed_texts(clip.model, clip.processor, TEXTS[:2]).T
    np.testing.assert_allclose(answer["cosines"], cosines.numpy(), atol=2e-6)
    scale = clip.model.logit_scale.exp().item()
    np.testing.assert_allclose(answer["logits"], cosines.numpy() * scale, atol=2e-6 * scale)


def test_where_gives_places_maps_and_a_picture(client, clip):
    content = image_file(size=(90, 60))
    body = {"image": encoded(content), "texts": TEXTS[:2], "answer": "maps"}
    answer = post(client, "/where", body).json()
    expected = hf_clip.where(clip.model, clip.processor, opened(content), TEXTS[:2]).numpy()
    assert (answer["width"], answer["height"]) == (90, 60)
    for text, found, values in zip(TEXTS, answer["found"], expected, strict=False):
        maps = np.frombuffer(base64.b64decode(found["map"]), "<f4").reshape(60, 90)
        np.testing.assert_allclose(maps, values, atol=1e-6)
        assert found["text"] == text
        assert found["score"] == pytest.approx(values[found["y"], found["x"]])
    assert post(client, "/where", {**body, "answer": "peaks"}).json()["found"][0]["map"] is None
    picture = post(client, "/where", {**body, "answer": "png"})
    assert picture.headers["content-type"] == "image/png"
    assert opened(picture.content).format == "PNG"
    assert_refused(post(client, "/where", {**body, "texts": ["a"] * 9}), 422, "texts: list should have at most 8 items")


@pytest.fixture(scope="module")
def searched(clip, tmp_path_factory):
    """A server with an index of five images, and the index."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "photos").mkdir()
    for seed in range(5):
        (folder / "photos" / f"{seed}.png").write_bytes(image_file(seed))
    assert run("embed", folder / "photos", "--output", folder / "out.parquet", "--model", clip.folder) == 0
    built = ImageIndex.build(folder / "out.parquet", folder / "photos.index", clip.model, clip.processor)
    with TestClient(app_of(clip, index=str(folder / "photos.index")), raise_server_exceptions=False) as client:
        yield client, built


def test_search_finds_what_the_index_finds(searched):
    client, index = searched
    content = image_file(3)
    for body, query in (
        ({"text": "a cat", "k": 3}, {"text": "a cat", "k": 3}),
        ({"text": ["a", "b"], "minus": "c"}, {"text": ["a", "b"], "minus": "c"}),
        ({"image": encoded(content), "text": "a"}, {"image": [opened(content)], "text": "a"}),
        ({"vector": index.rows[2].tolist(), "k": 1}, None),
    ):
        hits = post(client, "/search", body).json()["hits"]
        wanted = index.search(**query) if query else [{"path": "2.png", "score": 1.0}]
        assert [hit["path"] for hit in hits] == [hit["path"] for hit in wanted]
        np.testing.assert_allclose([hit["score"] for hit in hits], [hit["score"] for hit in wanted], atol=2e-6)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "the query is empty"),
        ({"text": "a", "vector": [1.0]}, "vector: send it without texts and images"),
        ({"vector": [1.0, 2.0]}, "the vector has 2 numbers, embeddings have 64"),
        ({"vector": [float("nan")] * 64}, "vector[0]: input should be a finite number"),
        ({"vector": [float("inf")] * 64}, "vector[0]: input should be a finite number"),
        ({"vector": [0.0] * 64}, "the query is zero"),
        ({"vector": [1e300] * 64}, "the query is zero, or too long"),
        ({"text": "a", "minus": "a"}, "the query is zero"),
        ({"text": "a", "k": 0}, "k: input should be greater than or equal to 1"),
        ({"text": "a", "where": ["year"]}, "'year' is not a condition"),
        ({"text": "a", "where": ["year>3"]}, "year"),
    ],
)
def test_queries_are_refused(searched, body, problem):
    assert_refused(post(searched[0], "/search", body), 422, problem)


def test_a_server_without_an_index_says_so(client):
    assert_refused(post(client, "/search", {"text": "a"}), 404, "this server has no index")


def test_pages_of_other_sites_are_let_in_only_when_named(clip, client):
    origin = {"Origin": "https://example.com"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert "access-control-allow-origin" not in client.get("/healthz", headers=origin).headers
    with TestClient(app_of(clip, cors=("https://example.com",), api_key="secret")) as open_to_one:
        preflight = open_to_one.options("/v1/embeddings", headers=asked)
        assert preflight.headers["access-control-allow-origin"] == "https://example.com"
        # a refusal can be read by the page too
        refused = open_to_one.post("/v1/embeddings", json={"input": "a"}, headers=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://example.com"
        other = open_to_one.get("/healthz", headers={"Origin": "https://other.com"})
        assert "access-control-allow-origin" not in other.headers


def test_images_are_downloaded_from_hosts_that_are_named(clip, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(image_file())
    with serving(tmp_path) as address, TestClient(app_of(clip, allow_urls=("127.0.0.1",))) as client:
        body = {"input": {"image": f"{address}/a.png"}}
        assert_refused(post(client, "/v1/embeddings", body), 422, "input: 127.0.0.1 is at a private address")
        monkeypatch.setattr(addresses, "is_public", lambda _: True)
        expected = hf_clip.embed_images(clip.model, clip.processor, [opened(image_file())]).numpy()
        np.testing.assert_allclose(embeddings(post(client, "/v1/embeddings", body)), expected, rtol=0, atol=BOUND)


def test_models_are_listed(client):
    [card] = client.get("/v1/models").json()["data"]
    assert (card["id"], card["dimensions"], card["context_length"]) == ("tiny", 64, 77)
    assert client.get("/v1/models/tiny").json() == card
    assert_refused(client.get("/v1/models/a/b"), 404, "there is no model 'a/b'")
    assert_refused(client.get("/nowhere"), 404, "there is no such route")
    assert_refused(client.get("/classify"), 405, "the route takes no GET")


def test_the_document_describes_every_route(client):
    document = client.get("/openapi.json").json()
    text = json.dumps(document)
    references = {name.partition('"')[0] for name in text.split('"#/components/schemas/')[1:]}
    assert references <= document["components"]["schemas"].keys()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            assert {"422", "503"} <= operation["responses"].keys()
    assert "length 1" in document["components"]["schemas"]["EmbeddingRequest"]["properties"]["normalize"]["description"]
    assert set(document["paths"]["/classify"]["post"]["requestBody"]["content"]) == {
        "application/json", "multipart/form-data",
    }  # fmt: skip


def test_metrics_count(clip):
    with TestClient(app_of(clip)) as client:
        post(client, "/v1/embeddings", {"input": ["a", "b"]})
        post(client, "/v1/embeddings", {"input": 3})
        client.get("/nowhere")
        text = client.get("/metrics").text
    for line in (
        'hf_clip_requests_total{route="/v1/embeddings",status="200"} 1.0',
        'hf_clip_requests_total{route="other",status="404"} 1.0',
        'hf_clip_refusals_total{status="422"} 1.0',
        'hf_clip_batch_items_sum{kind="text"} 2.0',
        'hf_clip_waiting_items{kind="text"} 0.0',
        'hf_clip_request_seconds_count{route="/v1/embeddings"} 2.0',
        "hf_clip_ready 1.0",
    ):
        assert line in text, line


def test_a_failure_of_the_model_fails_the_request_and_the_readiness(clip, monkeypatch):
    with TestClient(app_of(clip), raise_server_exceptions=False) as client:
        with monkeypatch.context() as patch:

            def fail(*_):
                raise RuntimeError("out of memory at /secret/path")

            patch.setattr(client.app.state.service.batcher.kinds["text"], "compute", fail)
            assert_refused(post(client, "/v1/embeddings", {"input": "a"}), 500, "the server failed on this request")
            assert_refused(client.get("/readyz"), 503, "the model does not answer")
            assert client.get("/healthz").status_code == 200
        # asked once more, it answers
        assert client.get("/readyz").status_code == 200
        assert post(client, "/v1/embeddings", {"input": "a"}).status_code == 200


@pytest.mark.parametrize("part", ["image", "text"])
def test_a_part_that_the_model_lacks_is_named(clip, part, monkeypatch):
    monkeypatch.setattr(ServedModel, "probe", lambda _: ({part: f"there is no {part} graph"}, 64))
    value = {"image": encoded(image_file())} if part == "image" else "a"
    with TestClient(app_of(clip)) as client:
        assert_refused(
            post(client, "/v1/embeddings", {"input": value}), 501, f"embeds no {part}s: there is no {part} graph"
        )
        assert_refused(post(client, "/where", {"image": encoded(image_file()), "texts": ["a"]}), 501, "has no maps")


@pytest.mark.parametrize("name", ["tiny ViT", "tiny ResNet"])
@pytest.mark.parametrize("count", [120, pytest.param(5000, marks=pytest.mark.exhaustive)])
def test_every_answer_belongs_to_its_request(repositories, name, count):
    """64 clients mix images, texts, labels and bad images; each answer is compared with the offline result.

    The case of a server that gave every text the empty prompt's vector while images were embedded, with status 200.
    """
    clip = load(repositories[name])
    generator = np.random.default_rng(count)
    images = [image_file(seed, format=["PNG", "JPEG"][seed % 2]) for seed in range(24)]
    words = [
        f"{word} {number}" for number in range(40) for word in ("a cat", "number", "two small dogs in the rain at")
    ]
    image_rows = hf_clip.embed_images(clip.model, clip.processor, [*map(opened, images)]).numpy()
    text_rows = hf_clip.embed_texts(clip.model, clip.processor, words).numpy()

    async def ask(client, kind: int, one: int, two: int) -> None:
        if kind == 0:
            answer = await client.post("/v1/embeddings", json={"input": words[one]})
            expected = text_rows[[one]]
        elif kind == 1:
            answer = await client.post("/v1/embeddings", json={"input": {"image": encoded(images[two])}})
            expected = image_rows[[two]]
        elif kind == 2:
            body = {"input": [words[one], {"image": encoded(images[two])}, words[two]], "encoding_format": "base64"}
            answer = await client.post("/v1/embeddings", json=body)
            expected = np.stack([text_rows[one], image_rows[two], text_rows[two]])
        elif kind == 3:
            body = {"images": [encoded(images[two])], "texts": [words[one], words[two]]}
            answer = await client.post("/score", json=body)
            cosines = image_rows[[two]] @ text_rows[[one, two]].T
            np.testing.assert_allclose(answer.json()["cosines"], cosines, rtol=0, atol=2 * BOUND)
            return
        else:
            broken = encoded(images[two][: len(images[two]) // 2])
            answer = await client.post("/v1/embeddings", json={"input": [words[one], {"image": broken}]})
            assert_refused(answer, 422, "input[1]: the file cannot be read as an image")
            return
        np.testing.assert_allclose(embeddings(answer), expected, rtol=0, atol=BOUND)

    async def main() -> None:
        slots = asyncio.Semaphore(64)

        async def one() -> None:
            async with slots:
                await ask(client, *(int(generator.integers(n)) for n in (5, len(words), len(images))))

        async with running(app_of(clip)) as client:
            await asyncio.gather(*(one() for _ in range(count)))
            batches = (await client.get("/metrics")).text
        sizes = dict(line.rsplit(" ", 1) for line in batches.splitlines() if line.startswith("hf_clip_batch_items"))
        for kind in ("image", "text"):  # requests did share batches
            assert float(sizes[f'hf_clip_batch_items_count{{kind="{kind}"}}']) < float(
                sizes[f'hf_clip_batch_items_sum{{kind="{kind}"}}']
            )

    asyncio.run(main())
