"""The loss over several processes, against one large batch."""

from pathlib import Path

import pytest
import torch
from support.distributed import on_two_processes
from support.pairs import distributed_gradients, gradients, pairs, training_model, worst_error

from hf_clip.model.modeling_hf_clip_base import contrastive_logits, contrastive_loss
from hf_clip.training.losses import clip_loss, gather_with_grad

pytestmark = pytest.mark.training
CASES = [(False, None), (True, None), (True, 4)]


@pytest.fixture
def embeds() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.functional.normalize(torch.randn(6, 8, generator=generator), dim=-1) for _ in range(2)]


SCALE = torch.tensor(3.0)


def test_distinct_pairs_give_the_loss_of_the_paper(embeds):
    expected = contrastive_loss(contrastive_logits(*embeds, SCALE))
    assert torch.equal(clip_loss(*embeds, SCALE), expected)
    assert torch.equal(clip_loss(*embeds, SCALE, image_ids=torch.arange(6), text_ids=torch.arange(6)), expected)


def test_the_target_is_spread_over_equal_texts_and_images(embeds):
    """Brute force over rows: the mean of -log p over the positives of each."""
    image_ids, text_ids = torch.tensor([0, 1, 2, 0, 4, 5]), torch.tensor([0, 1, 2, 3, 1, 5])
    logits = contrastive_logits(*embeds, SCALE)
    expected = 0.0
    for scores in (logits, logits.t()):
        for i in range(6):
            positives = [j for j in range(6) if image_ids[i] == image_ids[j] or text_ids[i] == text_ids[j]]
            expected -= sum(scores[i].log_softmax(-1)[j] for j in positives) / len(positives) / 12
    found = clip_loss(*embeds, SCALE, image_ids=image_ids, text_ids=text_ids)
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, clip_loss(*embeds, SCALE))


@pytest.mark.parametrize("ids", [None, torch.tensor([0, 1, 2, 0, 4, 5])], ids=["distinct", "duplicates"])
def test_pairs_that_are_not_valid_count_for_nothing(embeds, ids):
    valid = torch.tensor([True, True, False, True, True, False])
    rows = [rows.clone().requires_grad_() for rows in embeds]
    found = clip_loss(*rows, SCALE, image_ids=ids, valid=valid)
    kept = None if ids is None else ids[valid]
    torch.testing.assert_close(found, clip_loss(*(rows[valid] for rows in embeds), SCALE, image_ids=kept))
    found.backward()
    assert all((row.grad[~valid] == 0).all() and row.grad.isfinite().all() for row in rows)


def test_a_batch_without_valid_pairs_is_refused(embeds):
    with pytest.raises(ValueError, match="no pair of the batch is valid"):
        clip_loss(*embeds, SCALE, valid=torch.zeros(6, dtype=torch.bool))


def test_one_process_has_nothing_to_gather(embeds):
    assert gather_with_grad(embeds[0]) is embeds[0]


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one_large_batch(repositories: dict[str, Path], tmp_path: Path):
    found = on_two_processes(distributed_gradients, tmp_path, repositories, CASES)
    for family, folder in repositories.items():
        model = training_model(folder).double()
        for duplicates, mini_batch_size in CASES:
            loss, expected = gradients(model, pairs(model.config, duplicates=duplicates))
            for rank in found:
                rank_loss, rank_gradients = rank[family, duplicates, mini_batch_size]
                assert torch.isclose(rank_loss, loss, rtol=1e-6)
                assert rank_gradients.keys() == expected.keys()
                assert worst_error(rank_gradients, expected) <= 1e-5, (family, duplicates, mini_batch_size)
