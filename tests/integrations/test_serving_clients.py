"""Clients that do not know this server: OpenAI's, LangChain's, and one that tries all that its document admits."""

import base64
import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient
from support.plain import load
from support.requests import app_of, encoded, image_file, opened

import hf_clip
from hf_clip.serving.server import DrainingServer, open_socket, serve_until_stopped
from hf_clip.serving.service import ServerSettings

pytestmark = pytest.mark.integration
openai = pytest.importorskip("openai")
langchain_openai = pytest.importorskip("langchain_openai")
schemathesis = pytest.importorskip("schemathesis")
TEXTS = ["a cat", "two dogs in the rain"]


@pytest.fixture(scope="module")
def clip(repositories):
    return load(repositories["tiny ViT"])


@pytest.fixture(scope="module")
def address(clip) -> Iterator[str]:
    """A server with a key, in a thread."""
    servers, ready = [], threading.Event()
    init = DrainingServer.__init__

    def keep(self, *arguments, **options):
        init(self, *arguments, **options)
        servers.append(self)

    settings = ServerSettings(name="tiny", labels=("a cat", "a dog"), api_key="secret")
    with pytest.MonkeyPatch.context() as patch, open_socket("127.0.0.1", 0) as listener:
        patch.setattr(DrainingServer, "__init__", keep)
        load_it = lambda: (clip.model, clip.processor)  # noqa: E731
        thread = threading.Thread(target=serve_until_stopped, args=(load_it, settings, listener, ready.set))
        thread.start()
        assert ready.wait(60)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        servers[0].should_exit = True
        thread.join()


def test_openai_s_client(address, clip):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret")
    expected = hf_clip.embed_texts(clip.model, clip.processor, TEXTS).numpy()
    for options in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model="tiny", input=TEXTS, **options)
        np.testing.assert_allclose([row.embedding for row in answer.data], expected, rtol=0, atol=1e-6)
        assert answer.usage.total_tokens == 11
    image = f"data:image/png;base64,{encoded(image_file())}"
    answer = client.embeddings.create(model="tiny", input=image)
    expected = hf_clip.embed_images(clip.model, clip.processor, [opened(image_file())]).numpy()
    np.testing.assert_allclose([answer.data[0].embedding], expected, rtol=0, atol=1e-6)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "hf_clip"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.UnprocessableEntityError, match=r"input\[1\]: the text is empty"):
        client.embeddings.create(model="tiny", input=["a", ""])
    with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
        openai.OpenAI(base_url=f"{address}/v1", api_key="other").embeddings.create(model="tiny", input="a")


def test_langchain_s_embeddings(address, clip):
    options = {"base_url": f"{address}/v1", "api_key": "secret", "model": "tiny"}
    embeddings = langchain_openai.OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    expected = hf_clip.embed_texts(clip.model, clip.processor, TEXTS).numpy()
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), expected[0], rtol=0, atol=1e-6)


def test_ids_of_another_tokenizer_are_refused(address):
    """As LangChain sends them unless told otherwise: they would give vectors without a meaning."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret")
    with pytest.raises(openai.UnprocessableEntityError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model="tiny", input=[[64, 8415]])


def test_no_request_that_the_document_admits_or_forbids_fails_the_server(address):
    """Schemathesis draws requests for every route, right and wrong ones."""
    import hypothesis

    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", wait_for_schema=10)
    seen: dict[str, set[int]] = {}

    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=40, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        def ask(case):
            response = case.call(headers={"Authorization": "Bearer secret"})
            seen.setdefault(case.path, set()).add(response.status_code)
            assert response.status_code < 500 or response.status_code in (501, 503), (
                case.as_curl_command(),
                response.text,
            )
            if response.status_code >= 400:
                assert json.loads(response.content)["error"]["message"]

        ask()
    assert {"/v1/embeddings", "/classify", "/score", "/search", "/where", "/readyz", "/metrics"} <= seen.keys()
    assert all(200 in seen[path] for path in ("/readyz", "/metrics", "/v1/models"))


def test_maps_travel_as_numbers(address, clip):
    client = openai.OpenAI(base_url=address, api_key="secret")
    body = {"image": encoded(image_file()), "texts": TEXTS, "answer": "maps"}
    found = client.post("/where", body=body, cast_to=object)["found"]
    expected = hf_clip.where(clip.model, clip.processor, opened(image_file()), TEXTS).numpy()
    for each, values in zip(found, expected, strict=True):
        decoded = np.frombuffer(base64.b64decode(each["map"]), "<f4").reshape(values.shape)
        np.testing.assert_allclose(decoded, values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parts", [["vision", "text"], ["text"]])
def test_an_exported_folder_is_served(clip, parts, tmp_path):
    """On ONNX Runtime; a part that it lacks is named, and the rest answers."""
    pytest.importorskip("onnxruntime")
    hf_clip.export_clip(clip.folder, tmp_path / "exported", parts=parts)
    model, processor = hf_clip.load_clip(tmp_path / "exported")
    app = app_of(SimpleNamespace(model=model, processor=processor), name="exported")
    image = {"image": encoded(image_file())}
    with TestClient(app) as client:
        answer = client.post("/v1/embeddings", json={"input": TEXTS})
        expected = hf_clip.embed_texts(model, processor, TEXTS).numpy()
        found = [row["embedding"] for row in answer.json()["data"]]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert client.get("/readyz").status_code == 200
        answer = client.post("/classify", json={**image, "labels": ["a", "b"]})
        if "vision" in parts:
            assert {each["label"] for each in answer.json()} == {"a", "b"}
        else:
            assert answer.status_code == 501
            assert "has no vision graph" in answer.json()["error"]["message"]
        refused = client.post("/where", json={**image, "texts": ["a"]})
        assert refused.status_code == 501
