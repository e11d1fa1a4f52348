"""The tests that transformers asks of every model, tokenizer and processor, from its source archive."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "support" / "common_cases.py"
# what transformers itself skips for an encoder on a CPU, and more
MIN_PASSED = 600


def unpack(folder: Path) -> None:
    """Fetch the archive of the version that is installed, from the package index, and keep its tests."""
    archive = f"transformers=={transformers.__version__}"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", archive]
    subprocess.run([*download, "--dest", str(folder)], check=True)
    [file] = folder.glob("transformers-*.tar.gz")
    with tarfile.open(file) as tar:
        tar.extractall(folder, filter="data")
    shutil.move(folder / file.name.removesuffix(".tar.gz") / "tests", folder / "transformers_tests")
    (folder / "transformers_tests" / "__init__.py").touch()


def test_transformers_own_tests(tmp_path):
    unpack(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-n", "2", "-p", "no:cacheprovider"]
    environment = os.environ | {
        "TRANSFORMERS_TESTS": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, "-c", os.devnull, "--rootdir", str(tmp_path), str(CASES)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    [passed] = re.findall(r"(\d+) passed,", done.stdout)
    assert int(passed) >= MIN_PASSED
