"""`python -m hf_clip`: the same as `hf-clip`, whose help is instant only under that name."""

from .cli.app import main

if __name__ == "__main__":
    main()
