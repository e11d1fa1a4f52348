"""Data sets of images with captions or labels, from the layouts in which people keep them."""
