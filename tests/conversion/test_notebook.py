"""The notebook of a model card: its examples, in their order, as cells."""

import json
import re

import pytest
from test_model_cards import code_blocks, read_card

from conversion.notebook import card_notebook


@pytest.mark.parametrize("repo_name", ["clip-rn50", "clip-vit-base-patch32"])
def test_cells_are_the_examples_of_the_card(repo_name):
    card = read_card(repo_name)
    notebook = json.loads(card_notebook(card))
    cells = {kind: [] for kind in ("markdown", "code")}
    for cell in notebook["cells"]:
        cells[cell["cell_type"]].append("".join(cell["source"]))
    photo, *code = cells["code"]
    assert "urlretrieve" in photo
    installs = [cell for cell in code if cell.startswith("%pip install ")]
    assert [cell for cell in code if cell not in installs] == [block.strip() for block in code_blocks(card, "python")]
    assert [cell[1:] for cell in installs] == [block.strip() for block in code_blocks(card, "bash")]
    assert re.findall(r"^### .+", "\n".join(cells["markdown"]), re.MULTILINE) == re.findall(
        r"^### .+", card, re.MULTILINE
    )
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])


def test_a_card_without_examples_has_no_notebook():
    assert card_notebook("# CLIP\n\n## Limits\n") is None
