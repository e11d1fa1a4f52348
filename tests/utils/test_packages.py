import re
import sys

import pytest

from hf_clip.utils.packages import MissingPackageError, install_command, require


def test_an_installed_package_is_no_news():
    assert require("json", "plot", "--plot") is None


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=f"^--plot needs matplotlib: {re.escape(install_command('plot'))}$"):
        require("matplotlib", "plot", "--plot")
