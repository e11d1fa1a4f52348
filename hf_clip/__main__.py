"""`python -m hf_clip`: the same as `hf-clip`."""

from .cli.app import main

if __name__ == "__main__":
    main()
