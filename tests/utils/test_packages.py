import re
import sys

import pytest

from hf_clip.utils.packages import MissingPackageError, install_command, require, require_torch


def test_an_installed_package_is_no_news():
    assert require("json", "plot", "--plot") is None


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=f"^--plot needs matplotlib: {re.escape(install_command('plot'))}$"):
        require("matplotlib", "plot", "--plot")


def test_an_old_torch_is_named():
    assert require_torch("2.6", "export") is None
    with pytest.raises(
        MissingPackageError, match=r'^export needs torch 99.1 or newer, not \d.*: pip install "torch>=99.1"$'
    ):
        require_torch("99.1", "export")
