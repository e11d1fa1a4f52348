"""Find images by text or image, and near-duplicates."""
