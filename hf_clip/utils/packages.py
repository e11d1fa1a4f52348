"""Optional packages and the extras that install them."""

from importlib.util import find_spec


class MissingPackageError(ImportError):
    """Raised if an optional package is needed and not installed."""


def require(package: str, extra: str, purpose: str) -> None:
    """Raise MissingPackageError, which names the extra to install, unless `package` can be imported."""
    if find_spec(package) is None:
        raise MissingPackageError(f'{purpose} needs {package}: pip install "hf_clip[{extra}]"', name=package)


__all__ = ["MissingPackageError", "require"]
