"""One small data set in every layout that `read_rows` reads."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ["blue_square", "red_circle"]
COLORS = {"blue_square": (20, 20, 230), "red_circle": (230, 20, 20)}


def picture(color: tuple[int, int, int], number: int) -> Image.Image:
    """One color, lighter from image to image."""
    return Image.new("RGB", (40, 30), tuple(min(255, channel + 9 * number) for channel in color))


def class_folders(folder: Path, each: int = 3) -> Path:
    """A folder for each class, with `each` images."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            picture(COLORS[name], number).save(folder / name / f"{number}.png")
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


def captions(folder: Path) -> list[dict[str, str]]:
    """A caption for each image of class folders, with paths below the folder."""
    return [
        {"image": str(file.relative_to(folder)), "text": f"{file.parent.name.replace('_', ' ')} number {file.stem}"}
        for file in files(folder)
    ]


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def pairs_tar(path: Path, folder: Path) -> Path:
    """The captioned images of class folders as samples of webdataset."""
    members = []
    for number, row in enumerate(captions(folder)):
        members.append((f"{number:05}.png", (folder / row["image"]).read_bytes()))
        members.append((f"{number:05}.txt", row["text"].encode()))
    return write_tar(path, members)


def wds_folder(root: Path, name: str, samples: list[dict[str, bytes]], shards: int = 1, **beside: list[str]) -> Path:
    """A data set in clip_benchmark's layout, of samples that map suffixes to contents; `beside` are its text files."""
    folder = root / f"wds_{name}"
    (folder / "test").mkdir(parents=True)
    size = -(-len(samples) // shards)
    for shard in range(shards):
        part = enumerate(samples[shard * size : (shard + 1) * size])
        members = [(f"s{number:07}.{suffix}", content) for number, sample in part for suffix, content in sample.items()]
        write_tar(folder / "test" / f"{shard}.tar", members)
    (folder / "test" / "nshards.txt").write_text(str(shards))
    for file, lines in beside.items():
        (folder / f"{file}.txt").write_text("\n".join(lines))
    return folder


def png(image: Image.Image, kind: str = "png") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def labeled_wds(root: Path, name: str = "vtab-colors", shards: int = 1) -> Path:
    """Two classes of six images each, with names and templates."""
    samples = [
        {"png": png(picture(COLORS[color], number)), "cls": str(place).encode()}
        for number in range(6)
        for place, color in enumerate(CLASSES)
    ]
    templates = ["a photo of a {c}.", "a {c}"]
    names = [name.replace("_", " ") for name in CLASSES]
    return wds_folder(root, name, samples, shards, classnames=names, zeroshot_classification_templates=templates)


def captioned_wds(root: Path, name: str = "flickr30k") -> Path:
    """Four images with two captions each."""
    colors = [(20, 20, 230), (230, 20, 20), (20, 230, 20), (90, 90, 90)]
    samples = [
        {"jpg": png(picture(color, 0), "jpeg"), "txt": f"the color {number}\nnumber {number} of all".encode()}
        for number, color in enumerate(colors)
    ]
    return wds_folder(root, name, samples)


def multilabel_wds(root: Path, name: str = "voc2007_multilabel") -> Path:
    """Two classes, of which an image shows none, one or both, as clip_benchmark stores VOC 2007."""
    samples = [
        {
            "jpg": png(picture((150 * (number & 1), 90, 150 * (number >> 1 & 1)), number), "jpeg"),
            "npy": npy([number & 1, number >> 1 & 1]),
        }
        for number in range(8)
    ]
    names = [name.replace("_", " ") for name in CLASSES]
    return wds_folder(root, name, samples, classnames=names, zeroshot_classification_templates=["a photo of a {c}."])


def npy(values: list) -> bytes:
    content = io.BytesIO()
    np.save(content, np.array(values))
    return content.getvalue()
