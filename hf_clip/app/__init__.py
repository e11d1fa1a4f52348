"""The browser page that `hf-clip app` serves."""
