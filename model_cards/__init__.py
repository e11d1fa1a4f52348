"""The Hub's pages for the nine checkpoints: `python -m model_cards.render`."""
