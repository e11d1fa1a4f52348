from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient
from support.plain import load
from support.requests import app_of


@pytest.fixture(scope="session")
def clip(repositories) -> SimpleNamespace:
    return load(repositories["tiny ViT"])


@pytest.fixture(scope="session")
def client(clip) -> Iterator[TestClient]:
    with TestClient(app_of(clip, labels=("a cat", "a dog")), raise_server_exceptions=False) as client:
        yield client
