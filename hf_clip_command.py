"""The `hf-clip` command's entry point. It lies outside hf_clip, so that help answers before any model code is read."""

import os

LAZY = "HF_CLIP_LAZY"


def import_lazily() -> None:
    """Import hf_clip without its registration, which imports torch and transformers and follows with the first model.

    The variable is set for this import alone: a child process registers as any other does.
    """
    known = os.environ.get(LAZY)
    os.environ[LAZY] = "1"
    try:
        import hf_clip  # noqa: F401
    finally:
        if known is None:
            del os.environ[LAZY]
        else:
            os.environ[LAZY] = known


def main() -> None:
    """Run `hf-clip`."""
    import_lazily()
    from hf_clip.cli.app import main as run

    run()
