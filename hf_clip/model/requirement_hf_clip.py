"""The error of an older transformers: a repository's code may meet any version, and its own import errors name none."""

import transformers

LOWEST_TRANSFORMERS = "5.10.2"


def older_transformers() -> ImportError:
    """Return the error that names the transformers which this code needs, and the one that is installed."""
    return ImportError(
        f"this model's code needs transformers {LOWEST_TRANSFORMERS} or later, {transformers.__version__} is "
        f'installed: pip install "transformers>={LOWEST_TRANSFORMERS}"'
    )


__all__ = ["LOWEST_TRANSFORMERS", "older_transformers"]
