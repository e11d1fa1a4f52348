import csv
import json
import re
import shutil

from support.commands import run
from support.data_sets import class_folders


def test_suspects_of_two_splits(repositories, tmp_path, capsys):
    train, test = (class_folders(tmp_path / name, each=4) for name in ("train", "test"))
    shutil.copy(train / "blue_square/0.png", train / "red_circle/9.png")
    output, page = tmp_path / "suspects.csv", tmp_path / "suspects.html"
    arguments = ["suspects", train, test, "--model", repositories["tiny ViT"], "--output", output]
    assert run(*arguments, "--html", page, "--threshold", 0.9999, "--json") == 0
    said = capsys.readouterr()
    rows = list(csv.DictReader(output.open(encoding="utf-8")))
    assert [json.loads(line)["path"] for line in said.out.splitlines()] == [row["path"] for row in rows]
    found = {(row["kind"], row["path"].removeprefix(f"{tmp_path}/")) for row in rows}
    assert ("conflict", "train/red_circle/9.png") in found
    assert ("split", "test/blue_square/0.png") in found
    assert re.search(r"the heads agree with \d+% of the labels of images that they have not seen", said.err)
    assert "of 17 images are nearly the same as one of another data set" in said.err
    assert "red_circle/9.png" in page.read_text(encoding="utf-8")
    assert run(*arguments) == 1
    assert "suspects.csv exists" in capsys.readouterr().err
