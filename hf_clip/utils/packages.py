"""Optional packages and the extras that install them, and the command that installs an extra."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec

from packaging.version import Version

SOURCE = "git+https://github.com/hf-clip/hf_clip"
# what exported models run without, by the name that is imported
MODEL_PACKAGES = ("torch", "torchvision", "transformers")
# the distribution of the same code that depends on none of these
SMALL, SMALL_FOLDER = "hf_clip_exported", "distributions/exported"
# extras that both distributions have
SMALL_EXTRAS = ("heif", "openvino", "parquet", "plot", "remote", "search", "serve")


class MissingPackageError(ImportError):
    """Raised if an optional package is needed and not installed."""


def has_model_packages() -> bool:
    """Return True if torch and transformers are installed, without importing them."""
    return all(find_spec(name) is not None for name in MODEL_PACKAGES)


def install_command(extra: str = "") -> str:
    """Return the command that installs hf_clip with an extra. The package is on no index, so pip needs the address.

    Where torch is not installed, an extra is that of the distribution without it, if it has one of this name.
    """
    distribution, place = "hf_clip", SOURCE
    if extra in SMALL_EXTRAS and not has_model_packages():
        distribution, place = SMALL, f"{SOURCE}#subdirectory={SMALL_FOLDER}"
    return f'pip install "{distribution}{f"[{extra}]" if extra else ""} @ {place}"'


def package_version() -> str:
    """Return hf_clip's version, whichever distribution installed it."""
    return sys.modules[__name__.partition(".")[0]].__version__


@contextmanager
def explaining(name: str) -> Iterator[None]:
    """Turn a failed import of torch or transformers into a MissingPackageError that says how to install them.

    Args:
        name: The function, class or command that needs them.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in MODEL_PACKAGES:
            raise
        advice = f"{install_command()} (without it, hf_clip runs exported folders only)"
        raise MissingPackageError(f"{name} needs {package}: {advice}", name=package) from error


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


__all__ = [
    "MissingPackageError",
    "explaining",
    "has_model_packages",
    "install_command",
    "package_version",
    "require",
    "require_torch",
]
