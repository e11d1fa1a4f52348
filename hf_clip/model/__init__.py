"""The code that travels to Hub repositories. This file stays behind; `hf_clip.registration` registers the classes."""
