"""Fine-tune: losses, trainer, data sets, LoRA, weight averaging."""
