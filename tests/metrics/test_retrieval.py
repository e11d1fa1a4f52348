from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_clip.metrics import compute_retrieval_metrics, retrieval, retrieval_metrics
from hf_clip.metrics.retrieval import retrieval_ranks


def use_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(retrieval, "IMAGE_BLOCK", size)
    monkeypatch.setattr(retrieval, "TEXT_BLOCK", size + 1)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_retrieval_equals_brute_force_with_ties_and_one_to_seven_captions(block, monkeypatch):
    use_blocks(monkeypatch, block)
    generator = torch.manual_seed(0)
    owners = torch.arange(12).repeat_interleave(torch.arange(12) % 7 + 1)
    # small integers make products exact, and ties common
    images, texts = (torch.randint(-2, 3, (n, 4), generator=generator).float() for n in (12, len(owners)))
    scores = (images @ texts.T).tolist()
    by_image = [sorted(range(len(owners)), key=lambda t, row=row: (-row[t], t)) for row in scores]
    by_text = [sorted(range(12), key=lambda i, t=t: (-scores[i][t], i)) for t in range(len(owners))]
    metrics = retrieval_metrics(images, texts, owners, k=(1, 5, 500))
    for k in (1, 5, 500):
        found = [any(owners[t] == i for t in order[:k]) for i, order in enumerate(by_image)]
        assert metrics[f"text_retrieval_recall@{k}"] == sum(found) / 12
        found = [owners[t].item() in order[:k] for t, order in enumerate(by_text)]
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(sum(found) / len(owners), abs=1e-15)


def test_ranks_do_not_depend_on_blocks_and_equal_embeddings_tie(monkeypatch):
    """Images and texts come several times, and others differ by less than a product rounds."""
    generator = torch.manual_seed(0)
    distinct = torch.nn.functional.normalize(torch.randn(40, 96, generator=generator), dim=1)
    images = distinct[torch.arange(160) % 40] * (1 + 1e-7 * (torch.arange(160) % 3 == 0)[:, None])
    texts = torch.cat([images, images, distinct + 0.3 * torch.randn(40, 96, generator=generator)])
    owners = torch.arange(len(texts)) % 160
    scores = torch.stack([(images.double() * text.double()).sum(1) for text in texts], 1)
    expected = None
    for size in (7, 64, 1000):
        use_blocks(monkeypatch, size)
        image_ranks, text_ranks = retrieval_ranks(images, texts, owners)
        order = scores.argsort(dim=0, descending=True, stable=True)
        assert torch.equal(text_ranks, (order == owners).int().argmax(0))
        order = scores.argsort(dim=1, descending=True, stable=True)
        assert torch.equal(image_ranks, (owners[order] == torch.arange(160)[:, None]).int().argmax(1))
        assert expected is None or torch.equal(expected, text_ranks)
        expected = text_ranks


def test_stock_trainer_takes_the_metrics():
    """Predictions come as HFCLIPModel gives them: texts first."""
    rows = np.eye(4, dtype=np.float32)
    found = compute_retrieval_metrics(SimpleNamespace(predictions=(rows, rows[[0, 1, 3, 2]]), label_ids=()))
    assert found["image_retrieval_recall@1"] == found["mean_recall@1"] == 0.5
    assert found["text_retrieval_recall@5"] == 1
    with pytest.raises(ValueError, match="evaluate a CLIP"):
        compute_retrieval_metrics(SimpleNamespace(predictions=(rows,)))


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="text_embeds hold NaN"):
        retrieval_metrics(torch.eye(2), torch.full((2, 2), torch.nan), torch.arange(2))
    with pytest.raises(ValueError, match=r"k is \[0\]"):
        retrieval_metrics(torch.eye(2), torch.eye(2), torch.arange(2), k=[0])
    with pytest.raises(ValueError, match="image 1 has no text"):
        retrieval_metrics(torch.eye(2), torch.eye(2), torch.zeros(2, dtype=torch.long))
