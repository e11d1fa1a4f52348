"""What can be wrong with a checkpoint, or with fetching one."""


class CheckpointError(ValueError):
    """A name or a file that no CLIP weights can be read from."""


class DownloadError(RuntimeError):
    """A published checkpoint that could not be fetched, verified or stored."""


__all__ = ["CheckpointError", "DownloadError"]
