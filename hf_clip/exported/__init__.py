"""Run exported models without torch, or with the methods of HFCLIPModel."""

from .model import ExportedCLIP, load_exported
from .processor import ExportedProcessor

__all__ = ["ExportedCLIP", "ExportedProcessor", "load_exported"]
