"""Classifiers from a few pictures of each class, on top of CLIP's embeddings."""
