"""Export CLIP to other runtimes."""
