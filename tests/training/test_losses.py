"""The loss over several processes, against one large batch."""

import math
from pathlib import Path

import pytest
import torch
from support.distributed import on_two_processes
from support.pairs import distributed_gradients, gradients, pairs, training_model, worst_error

from hf_clip.model.modeling_hf_clip_base import contrastive_logits, contrastive_loss
from hf_clip.training.losses import class_loss, clip_loss, gather_with_grad, loss_floor, multilabel_loss, siglip_loss

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


def test_the_floor_is_the_least_loss_that_duplicates_allow():
    """Two classes, batch 128, a perfect model: the loss is ln 64 = 4.16, and nothing of it can be learned."""
    classes = torch.arange(128) % 2
    embeds = torch.eye(2)[classes]
    ids = {"image_ids": torch.arange(128), "text_ids": classes}
    assert loss_floor(**ids).item() == pytest.approx(math.log(64))
    assert clip_loss(embeds, embeds, torch.tensor(5.0), **ids).item() == pytest.approx(math.log(64), abs=1e-5)
    assert loss_floor(torch.arange(6), torch.arange(6)) == 0
    valid = torch.tensor([True] * 5 + [False])
    assert loss_floor(torch.arange(6), torch.tensor([0, 1, 2, 3, 4, 0]), valid) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_over_classes_is_cross_entropy_of_the_valid_images(smoothing, weighted):
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 3, generator=generator), torch.arange(7) % 3
    valid = torch.tensor([True] * 6 + [False])
    weights = torch.tensor([0.5, 1.0, 3.0]) if weighted else None
    found = class_loss(logits, targets, weights=weights, smoothing=smoothing, valid=valid)
    expected = torch.nn.functional.cross_entropy(logits[:6], targets[:6], weights, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    broken = logits.clone().requires_grad_()
    with torch.no_grad():
        broken[6] = torch.nan
    class_loss(broken, targets, valid=valid).backward()
    assert broken.grad[:6].isfinite().all()
    with pytest.raises(ValueError, match="no image of the batch is valid"):
        class_loss(logits, targets, valid=torch.zeros(7, dtype=torch.bool))


@pytest.mark.parametrize("ids", [None, torch.tensor([0, 1, 2, 0, 4, 5])], ids=["distinct", "duplicates"])
def test_the_sigmoid_loss_has_the_gradient_of_a_bias_at_its_optimum(embeds, ids):
    bias = torch.zeros((), requires_grad=True)
    scale = SCALE.clone().requires_grad_()
    rows = [rows.clone().requires_grad_() for rows in embeds]
    labels = torch.eye(6) if ids is None else (ids[:, None] == ids).float()

    def loss_with_bias() -> torch.Tensor:
        scores = contrastive_logits(*rows, scale) + bias
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum") / 6

    optimizer = torch.optim.LBFGS([bias], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    optimizer.step(lambda: (optimizer.zero_grad(), value := loss_with_bias(), value.backward())[1])
    expected = loss_with_bias()
    gradients_ = torch.autograd.grad(expected, [*rows, scale])
    found = siglip_loss(*rows, scale, text_ids=ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(torch.autograd.grad(found, [*rows, scale]), gradients_, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_sigmoid_loss_leaves_out_pairs_that_are_not_valid(embeds):
    valid = torch.tensor([True, True, False, True, True, False])
    expected = siglip_loss(*(rows[valid] for rows in embeds), SCALE)
    torch.testing.assert_close(siglip_loss(*embeds, SCALE, valid=valid), expected)


def test_a_loss_over_several_classes_has_the_bias_of_a_converged_one():
    """Its derivative by a bias that is added to all logits is zero; what is not valid does not count."""
    generator = torch.Generator().manual_seed(0)
    logits = (20 + 5 * torch.randn(6, 4, generator=generator)).requires_grad_()
    targets = (torch.rand(6, 4, generator=generator) > 0.7).float()
    multilabel_loss(logits, targets).backward()
    assert abs(logits.grad.sum()) < 1e-4
    assert (logits.grad[targets == 1] < 0).all()
    assert (logits.grad[targets == 0] > 0).all()
    valid = torch.tensor([True] * 5 + [False])
    torch.testing.assert_close(multilabel_loss(logits, targets, valid=valid), multilabel_loss(logits[:5], targets[:5]))
    with pytest.raises(ValueError, match="no image of the batch is valid"):
        multilabel_loss(logits, targets, valid=torch.zeros(6, dtype=torch.bool))
