"""Find images by text or image, and images that are nearly the same, among embeddings."""
