"""The `hf-clip` command, a module for each verb.

Modules import torch and transformers inside their functions, so that help is instant.
"""
