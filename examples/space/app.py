"""The app as a Space: `MODEL` and `COMPARE` in the environment name its models."""

import os

from hf_clip import HFCLIPModel, HFCLIPProcessor
from hf_clip.app.page import MAX_BYTES, build_page, display_name

MODEL = os.environ.get("MODEL", "openai/clip-vit-base-patch32")
COMPARE = os.environ.get("COMPARE")

clips = [
    (HFCLIPModel.from_pretrained(source).eval(), HFCLIPProcessor.from_pretrained(source))
    for source in filter(None, (MODEL, COMPARE))
]
demo = build_page(*clips, title=display_name(*clips[0]))

if __name__ == "__main__":
    demo.launch(max_file_size=MAX_BYTES, allowed_paths=[], show_error=True)
