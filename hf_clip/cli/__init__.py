"""The `hf-clip` command. Its modules import torch and transformers inside their functions, so that help is instant."""
