"""Write the examples of a model card as a notebook, which the Hub offers to open in Colab and Kaggle."""

import json
import re

NOTEBOOK = "notebook.ipynb"
EXAMPLES = re.compile(r"^## Use\n(.*?)^## ", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# two cats, the photograph of most examples on the Hub
PHOTO = """\
from urllib.request import urlretrieve

urlretrieve("http://images.cocodataset.org/val2017/000000039769.jpg", "photo.jpg")
"""


def card_notebook(card: str) -> bytes | None:
    """Return a card's section Use as a notebook, a cell for each text and code block; None without the section."""
    examples = EXAMPLES.search(card)
    if examples is None:
        return None
    cells, (text, *blocks) = [_cell("code", PHOTO)], BLOCK.split(examples[1])
    cells.append(_cell("markdown", text))
    for language, code, text in zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True):
        cells.append(_cell("code", f"%{code}" if language == "bash" else code))
        cells.append(_cell("markdown", text))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": [cell for cell in cells if cell["source"]],
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    return json.dumps(notebook, ensure_ascii=False, indent=1).encode()


def _cell(kind: str, source: str) -> dict[str, object]:
    outputs = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source.strip().splitlines(keepends=True), **outputs}


__all__ = ["NOTEBOOK", "card_notebook"]
