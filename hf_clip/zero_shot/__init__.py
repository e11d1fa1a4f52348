"""Label images with any words: classifier and pipeline."""
