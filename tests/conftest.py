import gc
import os
import signal
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_corpus import random_image
from support.originals import FAMILIES, original_model, save_archive
from support.plain import load

from hf_clip.openai.convert import Layout, convert

STOCK = "transformers"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="Count each skip as a failure.")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave tests/integrations alone where none is asked for: its modules import packages of their own."""
    left_out = collection_path.name == "integrations" and "not integration" in config.option.markexpr
    return True if left_out else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the architectures at full size, minutes each: at the end the other workers would wait for the last."""
    items.sort(key=lambda item: item.path.name != "test_parity.py")


def pytest_collection_finish() -> None:
    """Spare the garbage collector the half million objects of imports and tests, a seventh of the suite's time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator:
    return _without_skip(item.config, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator:
    return _without_skip(collector.config, (yield))


def _without_skip(config: pytest.Config, report):
    if config.getoption("--no-skips") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    return report


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


@pytest.fixture(scope="module")
def folders(archives, repositories, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stock") / "tiny"
    convert(str(archives["tiny ViT"]), folder, Layout.transformers, report=lambda _: None)
    return {**repositories, STOCK: folder}


@pytest.fixture(scope="module", params=[*FAMILIES, STOCK])
def any_clip(request, folders) -> SimpleNamespace:
    """Model and processor: both families of ours, and transformers' own CLIP."""
    return load(folders[request.param])


@pytest.fixture(scope="module")
def tiny(folders) -> SimpleNamespace:
    return load(folders["tiny ViT"])


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index, mode in enumerate(["RGB", "L", "P", "RGBA", "1"]):
        random_image(mode, 40 + 7 * index, 90 - 9 * index, generator).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def images(paths) -> list[Image.Image]:
    return [Image.open(path) for path in paths]


@pytest.fixture
def interruptible() -> Generator:
    """Let children be interrupted: a background job of a shell ignores Ctrl-C, one of nohup the end of its terminal."""
    handlers = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
