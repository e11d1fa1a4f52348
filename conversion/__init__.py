"""Scripts that release the nine checkpoints: `python -m conversion --help`."""
