import os
from pathlib import Path

import pytest
import torch
from helpers import FAMILIES, original_model, save_archive

from conversion.convert import convert

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(params=FAMILIES, scope="session")
def family(request: pytest.FixtureRequest) -> str:
    """Both families in every test."""
    return request.param


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints in the published format, by family."""
    directory = tmp_path_factory.mktemp("archives")
    return {name: save_archive(original_model(name), directory / f"{name}.pt") for name in FAMILIES}


@pytest.fixture(scope="session")
def repositories(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, converted."""
    directory = tmp_path_factory.mktemp("repositories")
    for name, archive in archives.items():
        convert(str(archive), directory / name, report=lambda _: None)
    return {name: directory / name for name in archives}
