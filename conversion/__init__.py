"""Scripts that release the nine checkpoints: `python -m conversion --help`."""

from hf_clip_command import import_lazily

import_lazily()
