"""Images and bodies as clients of the server send them, and a server in this process."""

import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from httpx2 import ASGITransport, AsyncClient
from PIL import Image
from support.image_corpus import random_image

from hf_clip.serving.application import create_app
from hf_clip.serving.service import ServerSettings


def image_file(seed: int = 0, format: str = "PNG", size: tuple[int, int] = (60, 40), **options: Any) -> bytes:
    """Encode a random image."""
    file = io.BytesIO()
    random_image("RGB", *size, np.random.default_rng(seed)).save(file, format, **options)
    return file.getvalue()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def app_of(clip: Any, **settings: Any) -> Any:
    """Make an application of a model that is loaded already."""
    return create_app(lambda: (clip.model, clip.processor), ServerSettings(**{"name": "tiny", **settings}), wait=True)


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[AsyncClient]:
    """Start an application, and give a client that calls it in this process, as often at a time as it likes."""
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
