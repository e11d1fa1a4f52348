"""The maintainers' scripts: `python -m conversion --help`."""
