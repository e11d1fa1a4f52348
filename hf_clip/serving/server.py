"""The process that serves: its socket, its signals, and its end."""

import os
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from .application import create_app
from .service import ClipService, ServerSettings


class DrainingServer(uvicorn.Server):
    """Stop at the first signal when all requests that came are answered, and at the second at once."""

    service: ClipService
    ready: Callable[[], None]
    _told = False

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether to stop, and tell once that the model answers."""
        if self.service.failure is not None:
            return True
        if self.service.state == "ready" and not self._told:
            self._told = True
            self.ready()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or stop."""
        if self.should_exit:
            os._exit(128 + sig)
        self.service.state = "draining"
        self.should_exit = True


def open_socket(host: str, port: int) -> socket.socket:
    """Open the socket to listen at.

    Raises:
        OSError: The port is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen at {host}:{port} ({error.strerror or error}): choose another --port") from error


def serve_until_stopped(
    load: Callable[[], tuple[Any, Any]], settings: ServerSettings, listener: socket.socket, ready: Callable[[], None]
) -> None:
    """Serve until a signal comes; SIGTERM and SIGINT let running requests end.

    Args:
        load: Loads the model and its processor, while the server refuses requests with 503.
        settings: The settings.
        listener: The socket, of `open_socket`.
        ready: Called when the model answers.

    Raises:
        Exception: Whatever loading raised.
    """
    app = create_app(load, settings)
    service = app.state.service
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=75)
    server = DrainingServer(config)
    server.service, server.ready = service, ready
    server.run([listener])
    if service.failure is not None:
        raise service.failure


__all__ = ["DrainingServer", "open_socket", "serve_until_stopped"]
