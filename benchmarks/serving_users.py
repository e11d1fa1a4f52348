"""Users of the server for locust: each sends one image, or one text, after the other."""

import base64
import io
import os

import numpy as np
from locust import FastHttpUser, constant, task
from PIL import Image

KIND = os.environ.get("SERVING_KIND", "image")
PATH = os.environ.get("SERVING_PATH", "/v1/embeddings")
DRAWN = int(os.environ.get("SERVING_DRAWN", "64"))  # different bodies
SIZE = (500, 375)


def draw_jpegs(count: int) -> list[bytes]:
    """Draw JPEGs of smooth noise, of the size and the bytes of small photographs."""
    generator, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize(SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def bodies() -> list[dict[str, object]]:
    """Return the bodies of requests."""
    if KIND == "text":
        return [{"input": f"a photo of thing number {number}"} for number in range(DRAWN)]
    return [{"input": {"image": base64.b64encode(file).decode()}} for file in draw_jpegs(DRAWN)]


BODIES = bodies()


class Client(FastHttpUser):
    """Send requests without a pause."""

    wait_time = constant(0)
    sent = 0

    @task
    def embed(self) -> None:
        """Send the next body."""
        self.sent += 1
        self.client.post(PATH, json=BODIES[self.sent % DRAWN] | {"encoding_format": "base64"})
