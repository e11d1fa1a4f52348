"""Models that were exported to other runtimes, with the methods of HFCLIPModel."""
