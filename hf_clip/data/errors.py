"""Errors of data sets."""


class DataError(ValueError):
    """Raised for a data set that cannot be read as images with captions or labels."""


__all__ = ["DataError"]
