import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data_sets import (
    captions,
    class_folders,
    files,
    multilabel_wds,
    npy,
    pairs_tar,
    write_csv,
    write_jsonl,
    write_parquet,
    write_tar,
)

from hf_clip import UnreadableImageError
from hf_clip.data.read import read_rows
from hf_clip.data.rows import DataError, Rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "folder")


def beside(folder: Path) -> Path:
    """Write the caption of each image into a .txt of its name."""
    for file, row in zip(files(folder), captions(folder), strict=True):
        file.with_suffix(".txt").write_text(row["text"])
    return folder


def coco(folder: Path) -> Path:
    """Write the captions as COCO's annotations, in a folder beside that of the images."""
    folder.rename(folder.with_name("val2017"))
    folder.with_name("annotations").mkdir()
    rows = captions(folder.with_name("val2017"))
    images = [{"id": 7 + place, "file_name": row["image"]} for place, row in enumerate(rows)]
    annotations = [{"image_id": 7 + place, "caption": row["text"]} for place, row in enumerate(rows)]
    path = folder.with_name("annotations") / "captions_val2017.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    folder.symlink_to("val2017")  # where the test looks for the images
    return path


LAYOUTS = {
    "texts beside": beside,
    "coco": coco,
    "csv": lambda folder: write_csv(folder / "pairs.csv", captions(folder)),
    "tsv": lambda folder: write_csv(folder / "pairs.tsv", captions(folder), "\t"),
    "jsonl": lambda folder: write_jsonl(folder / "pairs.jsonl", captions(folder)),
    "parquet": lambda folder: write_parquet(folder / "pairs.parquet", captions(folder)),
    "tar": lambda folder: pairs_tar(folder / "pairs.tar", folder),
    "folder of tars": lambda folder: pairs_tar(folder / "pairs.tar", folder).parent,
    "pattern": lambda folder: pairs_tar(folder / "pairs-0.tar", folder).with_name("pairs-*.tar"),
    "folder with metadata": lambda folder: write_csv(folder / "metadata.csv", captions(folder)).parent,
    "rows": lambda folder: [row | {"image": str(folder / row["image"])} for row in captions(folder)],
    "rows of images": lambda folder: [
        {"image": picture_of(folder / row["image"]), "caption": [row["text"]]} for row in captions(folder)
    ],
}


def picture_of(path: Path) -> Image.Image:
    return Image.open(path)


def contents(rows: Rows) -> list[tuple[np.ndarray, tuple[str, ...]]]:
    return [(np.asarray(row.open()), row.texts) for row in rows]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pairs(layout: str, folder: Path):
    rows = read_rows(LAYOUTS[layout](folder))
    expected = captions(folder)
    assert [row.texts for row in rows] == [(row["text"],) for row in expected]
    for row, file in zip(rows, files(folder), strict=True):
        assert np.array_equal(row.open(), picture_of(file))


def test_texts_beside_images_are_for_all_or_none(folder: Path):
    """A few of them are not captions, or were forgotten."""
    beside(folder)
    files(folder)[0].with_suffix(".txt").write_text("one\n\ntwo\n")
    assert read_rows(folder)[0].texts == ("one", "two")
    renamed = [
        file.parent.rename(folder / name) for file, name in zip(files(folder)[::3], ("train", "test"), strict=True)
    ]
    with pytest.raises(DataError, match=r"holds splits \(test, train\): give one of them"):
        read_rows(folder)
    for path, name in zip(renamed, ("blue_square", "red_circle"), strict=True):
        path.rename(folder / name)
    files(folder)[3].with_suffix(".txt").unlink()
    with pytest.raises(DataError, match=r"1 of 6 images in .* have no .txt beside them, such as .*0.png"):
        read_rows(folder)
    for file in folder.rglob("*.txt"):
        file.rename(file.with_name(f"notes-{file.name}"))
    assert read_rows(folder).labels == ["blue square", "red circle"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "is no JSON of captions as COCO's"),
        ('{"images": [], "annotations": []}', "has no captions"),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}', "which its images do not list"),
        (
            '{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}',
            "is in none of",
        ),
        (
            '{"images": [{"id": 1, "file_name": "../c.json"}], "annotations": [{"image_id": 1, "caption": "x"}]}',
            "lies outside of",
        ),
    ],
)
def test_a_broken_annotation_file_is_named(tmp_path: Path, content: str, message: str):
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "c.json", tmp_path / "in" / "c.json"):
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "in" / "c.json")


def test_an_address_of_the_hub_is_checked():
    for address in ("hf://models/a/b", "hf://datasets/b"):
        with pytest.raises(DataError, match="is no data set of the Hub"):
            read_rows(address)


def test_class_folders_become_labels(folder: Path):
    rows = read_rows(folder)
    assert rows.labels == ["blue square", "red circle"]
    assert [row.label for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row.name for row in rows] == list(map(str, files(folder)))


def test_classnames_name_folders_and_integers(folder: Path):
    (folder / "classnames.txt").write_text("a blue thing\na red thing\n")
    assert read_rows(folder).labels == ["a blue thing", "a red thing"]
    table = write_csv(folder / "labels.csv", [{"file_name": "blue_square/0.png", "label": "1"}])
    rows = read_rows(table)
    assert (rows.labels, rows[0].label) == (["a blue thing", "a red thing"], 1)


def test_labels_by_name_are_sorted(folder: Path):
    rows = read_rows([{"image": "b", "label": "dog"}, {"image": "a", "label": "cat"}])
    assert (rows.labels, [row.label for row in rows]) == (["cat", "dog"], [1, 0])


def test_the_layout_of_clip_benchmark_is_read(folder: Path, tmp_path: Path):
    root = tmp_path / "wds"
    (root / "test").mkdir(parents=True)
    (root / "classnames.txt").write_text("blue square\nred circle\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    images = [file.read_bytes() for file in files(folder)[2:4]]
    write_tar(
        root / "test" / "0.tar", [("s0.png", images[0]), ("s0.cls", b"0"), ("s1.png", images[1]), ("s1.cls", b"1")]
    )
    rows = read_rows(root / "test")
    assert (rows.labels, rows.templates) == (["blue square", "red circle"], ["a photo of a {}."])
    assert [row.label for row in rows] == [0, 1]


def test_several_captions_and_json_come_from_a_tar(folder: Path, tmp_path: Path):
    image = files(folder)[0].read_bytes()
    members = [
        ("a/1.png", image),
        ("a/1.txt", b"one\ntwo\n"),
        ("b/1.png", image),
        ("b/1.json", b'{"caption": "three"}'),
    ]
    assert [row.texts for row in read_rows(write_tar(tmp_path / "x.tar", members))] == [("one", "two"), ("three",)]


def test_labels_of_several_classes_come_from_a_tar(folder: Path, tmp_path: Path):
    """A .npy of anything else says nothing, and one of another length is refused."""
    rows = read_rows(multilabel_wds(tmp_path / "wds") / "test")
    assert rows.labels == ["blue square", "red circle"]
    assert [row.classes for row in rows] == [(), (0,), (1,), (0, 1)] * 2
    assert rows.is_multilabel
    assert rows.multi_hot().tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]] * 2
    image = files(folder)[0].read_bytes()
    embedded = [("a.png", image), ("a.npy", npy([0.5, 0.1])), ("a.txt", b"text")]
    assert read_rows(write_tar(tmp_path / "x.tar", embedded))[0].texts == ("text",)
    for second in (npy([1, 0, 0]), npy([0.5, 0.1])):
        members = [("a.png", image), ("a.npy", npy([0, 1])), ("b.png", image), ("b.npy", second)]
        with pytest.raises(DataError, match=r"row 2 of .* has no 0 or 1 for each of 2 classes"):
            read_rows(write_tar(tmp_path / "y.tar", members))
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="comes with a text that cannot be read"):
        read_rows(write_tar(tmp_path / "z.tar", [("a.png", image), ("a.npy", pickled.getvalue())]))


def test_parts_of_a_sample_are_images_where_it_has_no_other(folder: Path, tmp_path: Path):
    image = files(folder)[0].read_bytes()
    names = ["a.input.png", "a.edited.PNG", "a.txt", "b.png", "b.mask.png", "b.txt", "c.txt", "d.mask.npy", "d.txt"]
    members = [(name, b"text" if name.endswith("txt") else image) for name in names]
    rows = read_rows(write_tar(tmp_path / "x.tar", members))
    assert [row.name.rpartition(":")[2] for row in rows] == ["a.input.png", "a.edited.PNG", "b.png"]
    assert [row.texts for row in rows] == [("text",)] * 3


def test_images_in_a_parquet_are_read(folder: Path, tmp_path: Path):
    rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "text": "x"} for file in files(folder)]
    first = read_rows(write_parquet(tmp_path / "x.parquet", rows))[0]
    assert np.array_equal(first.open(), picture_of(files(folder)[0]))


def test_rows_of_one_file_are_grouped(folder: Path):
    twice = [row | {"text": text} for row in captions(folder) for text in ("one", "two")]
    rows = read_rows(write_csv(folder / "twice.csv", twice))
    assert len(rows) == 2 * len(rows.grouped())
    assert all(row.texts == ("one", "two") for row in rows.grouped())


@pytest.mark.parametrize("layout", ["csv", "tar"])
def test_rows_travel_to_worker_processes(layout: str, folder: Path):
    rows = read_rows(LAYOUTS[layout](folder))
    for before, after in zip(contents(rows), contents(pickle.loads(pickle.dumps(rows))), strict=True):
        assert np.array_equal(before[0], after[0])
        assert before[1] == after[1]


@pytest.mark.parametrize("broken", ["missing", "empty", "text"])
def test_an_unreadable_image_is_named(broken: str, folder: Path):
    file = files(folder)[0]
    rows = read_rows(folder)
    file.unlink()
    if broken != "missing":
        file.write_bytes(b"" if broken == "empty" else b"no image")
    with pytest.raises(UnreadableImageError, match=file.name):
        rows[0].open()


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:1500])
    return path


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f / "nowhere", "there is no .*nowhere: give a folder of class folders"),
        (lambda f: f / "blue_square", "no class folders"),
        (lambda f: shutil.copy(files(f)[0], f / "x.png").parent, "images beside its folders"),
        (lambda f: files(f)[0], "is no data set"),
        (lambda f: write_text(f / "classnames.txt", "one").parent, "2 class folders, classnames.txt has 1 lines"),
        (lambda f: write_text(f / "x.csv", "image,text\n"), "has no rows"),
        (lambda f: write_text(f / "x.csv", "image,text\na,b,c\n"), "not as many columns"),
        (
            lambda f: write_text(f / "x.csv", "picture,text\na,b\n"),
            "the columns picture, text, none of them for image",
        ),
        (lambda f: write_text(f / "x.csv", "image,note\na,b\n"), "none of them for text or label"),
        (lambda f: write_text(f / "x.csv", "image,text,caption\na,b,c\n"), "several columns for text, text, caption"),
        (lambda f: write_text(f / "x.csv", "image,text\na, \n"), "row 1 of .* has neither caption nor label"),
        (lambda f: write_text(f / "x.csv", "image,text\n,b\n"), "row 1 of .* names no image"),
        (lambda f: write_text(f / "x.jsonl", "{\n"), "line 1 of .* is no JSON"),
        (lambda f: write_text(f / "x.jsonl", "[1]\n"), "line 1 of .* is a list"),
        (lambda f: write_text(f / "x.jsonl", '{"image": "a", "text": 3}\n'), "which is no text"),
        (lambda f: write_text(f / "x.tar", "no tar at all"), "is no uncompressed tar"),
        (lambda f: cut(pairs_tar(f / "x.tar", f)), "is cut short: copy it again"),
        (lambda f: [], "the data has no rows"),
        (lambda f: [{"image": "a", "label": -1}], "label -1, which is none of the 0 classes"),
    ],
)
def test_bad_data_is_refused_in_one_sentence(make, message: str, folder: Path):
    data = make(folder)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(data)
    assert "\n" not in str(caught.value)


def test_columns_may_be_named(folder: Path):
    rows = read_rows([{"a": "x.png", "b": "words", "image": "y.png"}], image_column="a", text_column="b")
    assert (rows[0].image.source, rows[0].texts) == ("x.png", ("words",))
    with pytest.raises(DataError, match="has no column c"):
        read_rows([{"a": "x.png"}], image_column="c")
