"""Training data: a data set of image-text pairs, and the collator that makes batches of them."""

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers.utils import logging

from ..data.images import Exif, ImageRef, ImageTally, UnreadableImageError
from ..data.labels import check_words
from ..data.read import read_rows
from ..data.rows import DataError, Row, Rows
from ..zero_shot.prompts import TEMPLATE, as_templates

logger = logging.get_logger(__name__)

ENOUGH = 32  # images to see before most of them being unreadable stops the run


class PairDataset(Dataset):
    """Pair each image with one of its captions, or with a prompt that is made of its label.

    Captions and templates are drawn anew in every epoch. The draw depends on the seed, the epoch and the row alone, so
    it is the same in every run and on every worker process. Images are decoded in batches, by the DataLoader's workers.

    Args:
        rows: The result of `read_rows`, or mappings with an image and a text or a label.
        templates: Texts with `{}` for the label; those of the data set, else "a photo of a {}.", unless given.
        seed: The seed of the draws.

    Raises:
        DataError: There are no rows, or they cannot be read.

    Example:
        >>> train = PairDataset.from_path("photos")
    """

    def __init__(
        self,
        rows: Rows | Iterable[Mapping[str, Any]],
        *,
        templates: str | Sequence[str] | None = None,
        seed: int = 0,
    ):
        self.rows = rows if isinstance(rows, Rows) else read_rows(rows)
        if self.is_labeled:
            check_words(self.rows.labels, self.rows.name)
        self.templates = as_templates(templates or self.rows.templates or TEMPLATE)
        self.seed = seed
        # in shared memory: persistent workers would not see an attribute change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @classmethod
    def from_path(
        cls,
        path: str | os.PathLike[str],
        *,
        templates: str | Sequence[str] | None = None,
        seed: int = 0,
        **columns: str | None,
    ) -> "PairDataset":
        """Read a folder of class folders, a table, or tars: see `hf_clip.data.read.read_rows`."""
        return cls(read_rows(path, **columns), templates=templates, seed=seed)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_labeled(self) -> bool:
        """Return True if the rows have labels and no captions."""
        return not any(row.texts for row in self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        text, key = self._text(row, index)
        item = {"image": row.image, "name": row.name, "text": text, "key": key, "index": index}
        if row.classes is not None:
            return item | {"class": [float(place in row.classes) for place in range(len(self.rows.labels))]}
        return item if row.label is None else item | {"class": row.label}

    def every_caption(self) -> "PairDataset":
        """Return a data set with a pair for each caption, as evaluation needs it; a label stays one prompt."""
        if all(len(row.texts) <= 1 for row in self.rows):
            return self
        pairs = [replace(row, texts=texts) for row in self.rows for texts in _each(row.texts)]
        rows = Rows(pairs, self.rows.labels, self.rows.templates, self.rows.name)
        return PairDataset(rows, templates=self.templates, seed=self.seed)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which the draws depend."""
        self._epoch.fill_(epoch)

    def fingerprint(self) -> str:
        """Return a digest of names, captions and labels, by which a resumed run recognizes its data."""
        digest = hashlib.sha256()
        for row in self.rows:
            several = () if row.classes is None else (row.classes,)
            known = (Path(row.name).name, row.texts, row.label, *several)
            digest.update(repr(known).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _text(self, row: Row, index: int) -> tuple[str, str]:
        """Draw a text, and return it with its key: pairs of equal keys are duplicates, whatever their templates."""
        draw = random.Random(hash((self.seed, int(self._epoch), index)))
        if row.texts:
            text = row.texts[draw.randrange(len(row.texts))]
            return text, text
        if row.classes is not None:
            return "", str(index)  # the loss over classes has prompts of its own
        label = self.rows.labels[row.label]  # type: ignore[index]
        return self.templates[draw.randrange(len(self.templates))].format(label), label


class BalancedSampler(Sampler):
    """Draw rows so that each class comes equally often, anew in each epoch.

    Args:
        dataset: A PairDataset with labels.

    Raises:
        DataError: A row has no label.
    """

    def __init__(self, dataset: PairDataset):
        if any(row.label is None for row in dataset.rows):
            raise DataError(f"{dataset.rows.name} has images without a label: balance needs one for each")
        self.dataset = dataset
        self.weights = class_weights(dataset.rows)[torch.tensor([row.label for row in dataset.rows])]

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[int]:
        # from seed and epoch alone, so that processes agree and a resumed run draws the same
        generator = torch.Generator().manual_seed(hash((self.dataset.seed, int(self.dataset._epoch))) % 2**63)
        return iter(torch.multinomial(self.weights, len(self), replacement=True, generator=generator).tolist())


def class_weights(rows: Rows) -> Tensor:
    """Return weights (classes,) inverse to the images of each class, of mean 1 over the images."""
    counts = torch.bincount(torch.tensor([row.label for row in rows]), minlength=len(rows.labels)).float()
    present = (counts > 0).sum()
    return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), torch.zeros(()))


class CLIPCollator:
    """Collate pairs into tensors: pixels, token ids, and integer ids by which duplicates are found.

    Unreadable images are named in a warning and masked out of the loss. Captions that are too long are cut, with one
    warning.

    Args:
        processor: The model's.
        strict: Raise UnreadableImageError at the first unreadable image.
        pad_to_max_length: Pad the token ids of all batches to the same width.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.
    """

    def __init__(self, processor: Any, strict: bool = False, pad_to_max_length: bool = False, exif: Exif = "ignore"):
        self.image_processor, self.tokenizer = processor.image_processor, processor.tokenizer
        self.strict, self.pad_to_max_length, self.exif = strict, pad_to_max_length, exif
        self._seen = self._unreadable = 0
        self._warned: set[str] = set()
        # in shared memory, so that all workers together warn once
        self._cut = torch.zeros((), dtype=torch.bool).share_memory_()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate mappings with `image` and `text`."""
        pixels, valid, surprising = self._pixel_values(rows)
        texts = [row["text"] for row in rows]
        return {
            "input_ids": self._input_ids(texts),
            "pixel_values": pixels,
            "image_ids": torch.tensor(
                [image_id(row["image"], tensor) for row, tensor in zip(rows, pixels, strict=True)]
            ),
            "text_ids": torch.tensor([number(row.get("key", row["text"]).encode()) for row in rows]),
            "valid": valid,
            "index": torch.tensor([row.get("index", -1) for row in rows]),
            "classes": torch.tensor([row.get("class", -1) for row in rows]),
            "surprising": surprising,
        }

    def _pixel_values(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return pixels (B, 3, H, W), whether an image was read (B,), and whether it is rotated, of 16 bits (B, 2)."""
        places: dict[Any, int] = {}  # an image with several captions is opened once
        place_of = torch.tensor([places.setdefault(ImageRef.of(row["image"]).key, len(places)) for row in rows])
        first = {place: row for row, place in zip(reversed(rows), reversed(place_of.tolist()), strict=True)}
        tallies = [ImageTally() for _ in places]
        images: list[Any] = [self._open(first[place], tally) for place, tally in enumerate(tallies)]
        readable = [image for image in images if image is not None]
        self._seen += len(images)
        self._unreadable += len(images) - len(readable)
        if self._unreadable == self._seen or (self._seen >= ENOUGH and 2 * self._unreadable > self._seen):
            raise DataError(
                f"{self._unreadable} of {self._seen} images cannot be read, the last of them {_name(rows[-1])}: check "
                "the paths of the data set"
            )
        # a batch of unreadable images alone is masked out as a whole, but needs the shape
        readable = readable or [Image.new("RGB", (1, 1))] * len(images)
        pixels = self.image_processor(images=readable, return_tensors="pt")["pixel_values"]
        valid = torch.tensor([image is not None for image in images])
        surprising = torch.tensor([[tally.rotated, tally.sixteen_bits] for tally in tallies], dtype=torch.bool)
        full = pixels.new_zeros(len(images), *pixels.shape[1:])
        if valid.any():
            full[valid] = pixels
        return full[place_of], valid[place_of], surprising[place_of]

    def _open(self, row: Mapping[str, Any], tally: ImageTally) -> Any:
        try:
            return ImageRef.of(row["image"], _name(row)).open(self.exif, tally)
        except UnreadableImageError as error:
            if self.strict:
                raise
            if _name(row) not in self._warned:
                self._warned.add(_name(row))
                logger.warning(f"skipped: {error}")
            return None

    def _input_ids(self, texts: list[str]) -> Tensor:
        limit = self.tokenizer.model_max_length
        padding = "max_length" if self.pad_to_max_length else True
        lengths = list(map(len, self.tokenizer(texts, verbose=False)["input_ids"]))
        if max(lengths) > limit and not self._cut:
            self._cut.fill_(True)
            longest = texts[lengths.index(max(lengths))]
            logger.warning(f"captions of over {limit} tokens are cut, such as {longest[:80]!r}")
        options = {"padding": padding, "truncation": True, "max_length": limit, "return_tensors": "pt"}
        return self.tokenizer(texts, **options)["input_ids"]


@contextmanager
def own_words() -> Iterator[None]:
    """Re-raise the error of a worker process with its own message, without the traceback that torch puts before it."""
    try:
        yield
    except (DataError, UnreadableImageError) as error:
        _, found, sentence = str(error).rpartition(f"{type(error).__name__}: ")
        if not (found and str(error).startswith("Caught ")):
            raise
        raise type(error)(sentence.strip()) from error


def _each(texts: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [(text,) for text in texts] or [()]


def _name(row: Mapping[str, Any]) -> str:
    if "name" in row:
        return row["name"]
    return (
        str(row["image"])[:200] if isinstance(row["image"], str | os.PathLike) else f"an image of {row['text'][:80]!r}"
    )


def image_id(source: Any, pixels: Tensor) -> int:
    """Return a number that equal images share: of the file's name, else of the pixels."""
    image = ImageRef.of(source)
    if image.in_memory:
        return number(pixels.numpy().tobytes())
    return number(image.name.encode(errors="surrogateescape"))


def number(content: bytes) -> int:
    """Hash bytes to an int64."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


__all__ = ["BalancedSampler", "CLIPCollator", "PairDataset", "class_weights"]
