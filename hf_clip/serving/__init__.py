"""Serve a CLIP over HTTP: embeddings, labels, scores, search and maps."""
