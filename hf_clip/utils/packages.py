"""Optional packages and the extras that install them, and the command that installs an extra."""

from importlib.metadata import version
from importlib.util import find_spec

from packaging.version import Version

SOURCE = "git+https://github.com/hf-clip/hf_clip"


class MissingPackageError(ImportError):
    """Raised if an optional package is needed and not installed."""


def install_command(extra: str) -> str:
    """Return the command that installs hf_clip with an extra. The package is on no index, so pip needs the address."""
    return f'pip install "hf_clip[{extra}] @ {SOURCE}"'


def require(package: str, extra: str, purpose: str) -> None:
    """Raise MissingPackageError, which names the extra to install, unless `package` can be imported."""
    if find_spec(package) is None:
        raise MissingPackageError(f"{purpose} needs {package}: {install_command(extra)}", name=package)


def require_torch(lowest: str, purpose: str) -> None:
    """Raise MissingPackageError unless the installed torch is `lowest` or newer."""
    if Version(found := version("torch")) < Version(lowest):
        raise MissingPackageError(
            f'{purpose} needs torch {lowest} or newer, not {found}: pip install "torch>={lowest}"'
        )


__all__ = ["MissingPackageError", "install_command", "require", "require_torch"]
