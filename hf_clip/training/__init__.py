"""Fine-tune CLIP: the loss over all processes, the trainer, locking, adapters, and interpolation of weights."""
