"""`interpolate`: from a model to its fine-tune."""

from pathlib import Path

import pytest
import torch
from support.training import changed, tensors

from hf_clip import HFCLIPModel
from hf_clip.training.interpolation import interpolate


@pytest.fixture
def ends(family: str, repositories: dict[str, Path]) -> tuple[HFCLIPModel, HFCLIPModel]:
    """A model, and one with other weights, statistics and counters."""
    base, tuned = (HFCLIPModel.from_pretrained(repositories[family]) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for tensor in tuned.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
        else:
            tensor += 3
    return base, tuned


def test_both_ends_are_equal_bit_for_bit(ends):
    base, tuned = ends
    before = tensors(tuned)
    assert changed(before, interpolate(base, tuned, 1)) == set()
    assert changed(tensors(base), interpolate(base, tuned, 0)) == set()


def test_between_them_every_number_is_a_mean(ends):
    base, tuned = ends
    first, last = tensors(base), tensors(tuned)
    for name, tensor in interpolate(base, tuned, 0.25).state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, first[name] + 0.25 * (last[name] - first[name]))
        else:
            assert torch.equal(tensor, first[name])
    if hasattr(base.vision_model, "stem"):
        assert "vision_model.stem.bn1.running_mean" in changed(first, tuned)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_is_a_share(ends, alpha: float):
    with pytest.raises(ValueError, match="alpha is"):
        interpolate(*ends, alpha)


def test_another_architecture_is_refused(repositories: dict[str, Path]):
    models = [HFCLIPModel.from_pretrained(folder) for folder in repositories.values()]
    with pytest.raises(ValueError, match=r"the models differ in .* its own fine-tune"):
        interpolate(*models)
