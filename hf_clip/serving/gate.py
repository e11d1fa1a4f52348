"""The gate before the routes: keys, sizes, times, and the counts of requests."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any

from .refusals import Refusal, as_json
from .service import ClipService

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

# base64 of an image of the most bytes fits with room to spare
MAX_BODY_BYTES = 32_000_000
# of all requests together, so that slow clients cannot fill the memory
MAX_BYTES_IN_FLIGHT = 16 * MAX_BODY_BYTES
BODY_SECONDS = 30.0
# a client that sends too much reads the refusal only after it has sent: this long it may go on
DISCARD_SECONDS = 5.0
HEALTH = ("/healthz", "/readyz")
# what is open without a key, and before the model is there
OPEN_ROUTES = (*HEALTH, "/docs", "/openapi.json")


class Gate:
    """Pass requests on to an ASGI application, or refuse them.

    A request's body is read whole, within a bound of bytes and of time, before the application sees it. A request
    whose client has gone away is given up, and so are its waiting items.

    Args:
        app: The application.
        service: The service behind it.
    """

    def __init__(self, app: Any, service: ClipService):
        self._app, self._service = app, service
        self._bytes = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, metrics, status = monotonic(), self._service.metrics, 0

        async def counted(message: Event) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        metrics.in_flight.inc()
        try:
            await self._answer(scope, receive, counted)
        except Refusal as refusal:
            await _send_refusal(refusal, counted)
        finally:
            metrics.in_flight.dec()
            # a route that does not exist must not become a time series
            route = getattr(scope.get("route"), "path", "other")
            metrics.answered(route, status or 500, monotonic() - start)

    async def _answer(self, scope: Any, receive: Receive, send: Send) -> None:
        length = int(next((value for name, value in scope["headers"] if name == b"content-length"), b"0"))
        held, complete = 0, not length
        try:
            self._check(scope, length)
            chunks: list[bytes] = []
            deadline = monotonic() + BODY_SECONDS
            while True:
                message = await _within(receive(), deadline - monotonic(), _too_slow)
                if message["type"] == "http.disconnect":
                    return
                chunks.append(message.get("body", b""))
                held += len(chunks[-1])
                self._bytes += len(chunks[-1])
                _check_length(held)
                if self._bytes > MAX_BYTES_IN_FLIGHT:
                    raise Refusal(429, "too many bytes are being answered: try again later", retry_after=1)
                if complete := not message.get("more_body"):
                    break
            await self._run(scope, b"".join(chunks), receive, send)
        except Refusal:
            if not complete:
                await _discard(receive)
            raise
        finally:
            self._bytes -= held

    def _check(self, scope: Any, length: int) -> None:
        """Raise Refusal for a request that need not be read."""
        if scope["path"] in OPEN_ROUTES:
            return
        if key := self._service.settings.api_key:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, token = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), key.encode()):
                raise Refusal(401, "the API key is missing or wrong: send the header Authorization: Bearer KEY")
        state = self._service.state
        if state != "ready" and scope["path"] != "/metrics":
            raise Refusal(503, f"the server is {state}: try again later", retry_after=5)
        _check_length(length)

    async def _run(self, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application on a body that was read, until it answers, its time is over, or the client is gone."""
        started = False
        messages: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Event:
            return messages.pop() if messages else await asyncio.Future()

        async def noted(message: Event) -> None:
            nonlocal started
            started = True
            await send(message)

        answer = asyncio.ensure_future(self._app(scope, replay, noted))
        gone = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            seconds = self._service.settings.max_seconds
            await asyncio.wait({answer, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
            elif not gone.done() and not started:
                raise Refusal(503, f"the request took over {seconds:g} seconds: try again later", retry_after=5)
        finally:
            gone.cancel()
            if not answer.done():
                answer.cancel()
                await asyncio.wait({answer})


async def _within(reading: Awaitable[Event], seconds: float, refuse: Callable[[], Refusal]) -> Event:
    try:
        return await asyncio.wait_for(reading, max(0.0, seconds))
    except asyncio.TimeoutError:
        raise refuse() from None


def _too_slow() -> Refusal:
    return Refusal(408, f"the body took over {BODY_SECONDS:g} seconds to arrive: send it faster, or less of it")


def _check_length(length: int) -> None:
    if length > MAX_BODY_BYTES:
        raise Refusal(413, f"the body has over {MAX_BODY_BYTES:,} bytes: send fewer or smaller images")


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _discard(receive: Receive) -> None:
    """Read on for a moment without keeping anything, so that a client which still sends can read its answer."""
    deadline = monotonic() + DISCARD_SECONDS
    try:
        while monotonic() < deadline:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - monotonic()))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return
    except asyncio.TimeoutError:
        return


async def _send_refusal(refusal: Refusal, send: Send) -> None:
    body = as_json(refusal.content)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


__all__ = ["MAX_BODY_BYTES", "Gate"]
