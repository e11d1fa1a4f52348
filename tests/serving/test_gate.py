"""The gate: keys, sizes, times and states, asked as an ASGI server asks."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from hf_clip.serving import gate
from hf_clip.serving.gate import Gate
from hf_clip.serving.metrics import ServerMetrics

PATH = "/v1/embeddings"


class Application:
    """Answer with the body's size; waits for `ready` before."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.ready.set()
        self.bodies: list[bytes] = []
        self.canceled = False

    async def __call__(self, scope, receive, send) -> None:
        message = await receive()
        self.bodies.append(message["body"])
        try:
            await self.ready.wait()
        except asyncio.CancelledError:
            self.canceled = True
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def ask(chunks=(b"{}",), path=PATH, headers=(), state="ready", api_key=None, seconds=60.0, then="wait", hold=False):
    """Send a request in chunks; gives the status, the sentence, the headers, the application and the gate."""
    sent: list[dict] = []

    async def main():
        settings = SimpleNamespace(api_key=api_key, max_seconds=seconds)
        service = SimpleNamespace(metrics=ServerMetrics(), settings=settings, state=state)
        app = Application()
        if hold:
            app.ready.clear()
        messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        if messages and then != "stop":
            messages[-1]["more_body"] = False

        async def receive():
            if messages:
                return messages.pop(0)
            if then == "leave":
                return {"type": "http.disconnect"}
            return await asyncio.Future()

        async def send(message):
            sent.append(message)

        gated = Gate(app, service)
        scope = {
            "type": "http",
            "path": path,
            "method": "POST",
            "headers": [(k.encode(), v.encode()) for k, v in headers],
        }
        await asyncio.wait_for(gated(scope, receive, send), 20)
        return app, gated, service.metrics

    app, gated, metrics = asyncio.run(main())
    status = sent[0]["status"] if sent else None
    body = b"".join(message.get("body", b"") for message in sent)
    sentence = json.loads(body)["error"]["message"] if status and status >= 400 else body.decode()
    found = {key.decode(): value.decode() for key, value in sent[0]["headers"]} if sent else {}
    return SimpleNamespace(status=status, sentence=sentence, headers=found, app=app, gate=gated, metrics=metrics)


def test_a_body_arrives_whole():
    answer = ask((b"ab", b"c", b""))
    assert (answer.status, answer.sentence) == (200, "ok")
    assert answer.app.bodies == [b"abc"]
    assert answer.gate._bytes == 0
    assert 'hf_clip_requests_total{route="other",status="200"} 1.0' in answer.metrics.text().decode()


@pytest.mark.parametrize(
    ("headers", "chunks"), [([("content-length", "101")], [b"x"]), ([], [b"x" * 60, b"x" * 60, b"y"])]
)
def test_a_large_body_is_refused_before_it_is_kept(headers, chunks, monkeypatch):
    monkeypatch.setattr(gate, "MAX_BODY_BYTES", 100)
    answer = ask(chunks, headers=headers)
    assert answer.status == 413
    assert answer.sentence == "the body has over 100 bytes: send fewer or smaller images"
    assert answer.app.bodies == []
    assert answer.gate._bytes == 0


def test_too_many_bytes_of_all_requests_are_refused(monkeypatch):
    monkeypatch.setattr(gate, "MAX_BYTES_IN_FLIGHT", 10)
    answer = ask([b"x" * 11])
    assert answer.status == 429
    assert answer.headers["retry-after"] == "1"


def test_a_slow_body_is_refused(monkeypatch):
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.02)
    monkeypatch.setattr(gate, "DISCARD_SECONDS", 0.02)
    answer = ask([b"x"], then="stop")
    assert answer.status == 408
    assert "took over 0.02 seconds to arrive" in answer.sentence
    assert answer.gate._bytes == 0


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        ("secret", 401),
        ("Bearer other", 401),
        ("Basic secret", 401),
        ("Bearer secret", 200),
        ("bearer secret", 200),
    ],
)
def test_a_key_is_asked_for(given, status):
    headers = [] if given is None else [("authorization", given)]
    answer = ask(headers=headers, api_key="secret")
    assert answer.status == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "secret" not in answer.sentence
        assert answer.app.bodies == []
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert ask(path=path, api_key="secret").status == 200
    assert ask(path="/metrics", api_key="secret").status == 401


@pytest.mark.parametrize("state", ["starting", "draining", "failed"])
def test_a_server_that_does_not_compute_says_so(state):
    answer = ask(state=state)
    assert (answer.status, answer.sentence) == (503, f"the server is {state}: try again later")
    assert answer.headers["retry-after"] == "5"
    for path in ("/healthz", "/readyz", "/metrics"):
        assert ask(path=path, state=state).status == 200


def test_a_request_that_takes_too_long_is_given_up():
    answer = ask(seconds=0.02, hold=True)
    assert (answer.status, answer.sentence) == (503, "the request took over 0.02 seconds: try again later")
    assert answer.app.canceled
    assert answer.gate._bytes == 0


def test_a_request_whose_client_is_gone_is_given_up():
    answer = ask(hold=True, then="leave")
    assert answer.status is None
    assert answer.app.canceled
    assert ask(chunks=[], then="leave").app.bodies == []
