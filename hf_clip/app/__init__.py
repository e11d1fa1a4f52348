"""A page in the browser that tries a CLIP."""
