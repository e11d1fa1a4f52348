"""Labels as people write them: the right class, or one sentence."""

from pathlib import Path

import numpy as np
import pytest
from support.data_sets import class_folders, write_csv

from hf_clip.data.read import read_rows
from hf_clip.data.rows import DataError


def labels_of(values: list) -> tuple[list[str], list[int]]:
    rows = read_rows([{"image": "a", "label": value} for value in values])
    return rows.labels, [row.label for row in rows]


@pytest.mark.parametrize(
    ("values", "names", "places"),
    [
        (["10", "9", "1"], ["1", "9", "10"], [2, 1, 0]),  # numbers by value
        ([1, 2, 3], ["1", "2", "3"], [0, 1, 2]),  # no class 0
        ([20250101, 20250102], ["20250101", "20250102"], [0, 1]),  # not twenty million classes
        (["007", "7"], ["007", "7"], [0, 1]),
        ([np.int64(1), np.int64(0)], ["0", "1"], [1, 0]),
        ([1.0, 0.0], ["0", "1"], [1, 0]),
        (["7", "a"], ["7", "a"], [0, 1]),
    ],
)
def test_each_distinct_label_is_a_class(values, names, places):
    assert labels_of(values) == (names, places)


def test_labels_that_are_no_label_are_refused():
    with pytest.raises(DataError, match=r"row 1 of the data has the label \[1, 2\], a list: give each image one"):
        labels_of([[1, 2]])
    with pytest.raises(DataError, match="the label 7, which is none of the 1 classes"):
        labels_of([7, "a"])


def named_folders(root: Path, names: list[str]) -> Path:
    folder = class_folders(root, each=1)
    image = next(folder.glob("*/*.png")).read_bytes()
    for path in list(folder.iterdir()):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    for name in names:
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(image)
    return folder


def test_numbered_folders_are_in_the_order_of_their_numbers(tmp_path):
    """As text 10 and 11 come before 2, and class names in numeric order went to other classes."""
    folder = named_folders(tmp_path / "digits", [str(number) for number in range(12)])
    rows = read_rows(folder)
    assert rows.labels == [str(number) for number in range(12)]
    (folder / "classnames.txt").write_text("\n".join(f"class {number}" for number in range(12)))
    rows = read_rows(folder)
    assert {Path(row.name).parent.name: rows.labels[row.label] for row in rows} == {
        str(number): f"class {number}" for number in range(12)
    }


def test_folders_are_named_by_equal_lines_whatever_their_order(tmp_path):
    folder = named_folders(tmp_path / "pets", ["Cat", "big_dog"])
    (folder / "classnames.txt").write_text("big dog\ncat\n")
    rows = read_rows(folder)
    assert {Path(row.name).parent.name: rows.labels[row.label] for row in rows} == {"Cat": "cat", "big_dog": "big dog"}
    (folder / "classnames.txt").write_text("big dog\nfish\n")
    with pytest.raises(DataError, match="no line for the folder Cat, but for others"):
        read_rows(folder)


def test_integers_are_places_among_known_names_and_names_come_first(tmp_path):
    (tmp_path / "classnames.txt").write_text("one\n0\n")
    table = write_csv(tmp_path / "x.csv", [{"image": "a", "label": label} for label in ("0", "one", "1")])
    assert [row.label for row in read_rows(table)] == [1, 0, 1]


class Image:
    """A stand-in for the feature of `datasets`."""

    def __init__(self, decode: bool = True):
        self.decode = decode


class ClassLabel:
    names = ["cat", "dog"]


class DataSet(list):
    """A stand-in for `datasets.Dataset`, which tests/integrations reads itself."""

    def __init__(self, rows):
        super().__init__(rows)
        self.features = {"image": Image(), "label": ClassLabel()}

    def cast_column(self, name, feature):
        self.features[name] = feature
        return self


def test_names_of_a_class_label_are_kept():
    """A label without its name became "a photo of a 0."."""
    data = DataSet([{"image": {"bytes": b"x", "path": None}, "label": 1}])
    rows = read_rows(data)
    assert (rows.labels, rows[0].label) == (["cat", "dog"], 1)
    assert not data.features["image"].decode


def test_splits_and_frames():
    with pytest.raises(DataError, match="the data is a dict of train, test: give one of them"):
        read_rows({"train": [], "test": []})
    pandas = pytest.importorskip("pandas")
    rows = read_rows(pandas.DataFrame({"image": ["a", "b"], "text": ["one", "two"]}))
    assert [row.texts for row in rows] == [("one",), ("two",)]


def test_splits_are_no_classes(tmp_path):
    """The classes were "test" and "train", and their accuracy was 0.25."""
    for split in ("train", "test"):
        class_folders(tmp_path / "animals" / split)
    (tmp_path / "animals" / "scripts").mkdir()
    meant = r"hf-clip finetune \S*animals/train, and measure on another by hf-clip evaluate zero-shot \S*animals/test"
    with pytest.raises(DataError, match=rf"holds splits, not classes \(test, train\): train on one by {meant}$"):
        read_rows(tmp_path / "animals")
    assert read_rows(tmp_path / "animals" / "train").labels == ["blue square", "red circle"]
