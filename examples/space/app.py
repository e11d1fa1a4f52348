"""The app as a Space: the environment variables `MODEL` and `COMPARE` name its models."""

import os

from hf_clip import load_clip
from hf_clip.app.page import LAUNCH_OPTIONS, build_page, display_name

MODEL = os.environ.get("MODEL", "openai/clip-vit-base-patch32")
COMPARE = os.environ.get("COMPARE")

clips = [load_clip(source) for source in filter(None, (MODEL, COMPARE))]
demo = build_page(*clips, title=display_name(*clips[0]))

if __name__ == "__main__":
    demo.launch(**LAUNCH_OPTIONS)
