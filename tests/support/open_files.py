"""Windows' rule on any Linux: a file that this process has open or mapped can be neither renamed nor removed."""

import os
import re
from pathlib import Path

import pytest

from hf_clip.utils import files


def open_below(path: str | os.PathLike) -> set[str]:
    """Return the files at or below `path` that this process has open or mapped."""
    root = os.path.abspath(path)
    found = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _is_open(number)]
    found += re.findall(r" (/.+)$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return {name for name in found if name == root or name.startswith(f"{root}/")}


def _is_open(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")  # the one that lists the folder is gone


def forbid_open_files(patch: pytest.MonkeyPatch) -> None:
    """Refuse what Windows refuses, and take away what it lacks: locks of folders, and an exchange of names."""

    def checked(function):
        def call(path, *rest, **options):
            if options.get("dir_fd") is None and (held := open_below(path)):
                raise PermissionError(13, f"open in this process: {', '.join(sorted(held))}", os.fspath(path))
            return function(path, *rest, **options)

        return call

    for name in ("rename", "replace", "unlink", "remove"):
        patch.setattr(os, name, checked(getattr(os, name)))
    patch.setattr(files, "fcntl", None)
    patch.setattr(files, "_exchange", lambda *_: False)
