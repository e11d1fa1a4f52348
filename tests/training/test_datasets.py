"""Pairs as they are drawn and batched."""

from pathlib import Path

import pytest
import torch
from support.data_sets import captions, class_folders, write_csv, write_jsonl
from support.training import drawn
from torch.utils.data import DataLoader

from hf_clip import HFCLIPProcessor
from hf_clip.data.rows import DataError
from hf_clip.evaluation.tasks import ZeroShotSet
from hf_clip.training.datasets import CLIPCollator, PairDataset, logger


@pytest.fixture(scope="module")
def collate(repositories: dict[str, Path]) -> CLIPCollator:
    return CLIPCollator(HFCLIPProcessor.from_pretrained(repositories["tiny ViT"]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "folder")


def several(folder: Path) -> PairDataset:
    rows = [row | {"text": [f"{row['text']} {word}" for word in ("one", "two", "three")]} for row in captions(folder)]
    return PairDataset.from_path(write_jsonl(folder / "several.jsonl", rows))


def texts(dataset: PairDataset, epoch: int) -> list[str]:
    dataset.set_epoch(epoch)
    return [dataset[place]["text"] for place in range(len(dataset))]


def test_another_caption_is_drawn_in_another_epoch_and_the_same_again(folder: Path):
    dataset = several(folder)
    first = texts(dataset, 0)
    assert texts(dataset, 1) != first
    assert texts(dataset, 0) == first == texts(several(folder), 0)
    assert len({text for epoch in range(20) for text in texts(dataset, epoch)}) == 3 * len(dataset)


def test_labels_become_prompts_and_are_equal_whatever_the_prompt(folder: Path, collate: CLIPCollator):
    dataset = PairDataset.from_path(folder, templates=["a {}", "the {}.", "one {} here"])
    rows = [dataset[place] for place in range(len(dataset))]
    assert {row["key"] for row in rows} == {"blue square", "red circle"}
    assert len({text for epoch in range(9) for text in texts(dataset, epoch)}) == 6
    ids = collate(rows)["text_ids"]
    assert (ids[:3] == ids[0]).all()
    assert (ids[3:] == ids[3]).all()
    assert ids[0] != ids[3]


def test_equal_images_are_told_by_file_or_pixels(folder: Path, collate: CLIPCollator):
    row = captions(folder)[0] | {"image": str(folder / captions(folder)[0]["image"])}
    ids = collate([row, {**row, "text": "other"}, *drawn(2), drawn(1)[0]])["image_ids"].tolist()
    assert ids[0] == ids[1]
    assert ids[2] == ids[4]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.slow
def test_workers_make_the_same_batches_and_see_the_epoch(folder: Path, collate: CLIPCollator, context: str):
    dataset = several(folder)
    here = DataLoader(dataset, batch_size=6, collate_fn=collate)
    there = DataLoader(
        dataset, 6, collate_fn=collate, num_workers=1, multiprocessing_context=context, persistent_workers=True
    )
    found = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        (expected,), (batch,) = here, there
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
        found.append(batch["text_ids"])
    assert not torch.equal(*found)


def test_a_long_caption_is_cut_with_one_warning(collate: CLIPCollator, monkeypatch: pytest.MonkeyPatch):
    said = []
    monkeypatch.setattr(logger, "warning", said.append)
    collate._cut.fill_(False)
    for _ in range(2):
        batch = collate([row | {"text": "long " * 100} for row in drawn(2)])
    assert batch["input_ids"].shape == (2, 77)
    assert (batch["input_ids"][:, -1] == collate.tokenizer.eos_token_id).all()
    assert len(said) == 1
    assert "captions of over 77 tokens are cut, such as 'long long" in said[0]


def test_a_data_set_knows_itself(folder: Path):
    first, again = several(folder), several(folder)
    assert first.fingerprint() == again.fingerprint()
    rows = [row | {"text": "else"} for row in captions(folder)]
    other = PairDataset.from_path(write_csv(folder / "other.csv", rows))
    assert other.fingerprint() != first.fingerprint()


def test_a_watched_set_needs_labels(folder: Path):
    with pytest.raises(DataError, match="has images without a label"):
        ZeroShotSet(write_csv(folder / "pairs.csv", captions(folder)))
