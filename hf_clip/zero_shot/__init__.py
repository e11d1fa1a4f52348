"""Zero-shot image classification."""
