"""`load` leaves PyTorch's random state where the original leaves it."""

import clip
import pytest
import torch
from clip.model import CLIP
from support.originals import ARCHITECTURES, TEXT, original_model

import hf_clip.openai as ours
from hf_clip.openai import random_draws
from hf_clip.openai.random_draws import skip_draws


@pytest.mark.parametrize("before", [0, 1, 622, 623, 624, 1000])
@pytest.mark.parametrize("count", [0, 1, 1000, 2**20, 2**20 + 1, 624 * 1700 - 1, 624 * 1700, 3_000_003])
def test_skipping_is_drawing(count, before):
    states = []
    for draw in (lambda n: torch.empty(n).uniform_(), skip_draws):
        torch.manual_seed(before)
        torch.empty(before).uniform_()
        draw(count)
        states.append((torch.rand(700), torch.randn(700)))
    assert all(map(torch.equal, *states))


def test_load_and_build_model(family, archives):
    """A head that is made after a seed and a model has the original's numbers."""
    heads = []
    for package in (clip, ours):
        torch.manual_seed(3)
        package.load(str(archives[family]), device="cpu")
        heads.append(torch.nn.Linear(64, 10).weight)
        package.clip.build_model(dict(original_model(family, seed=3).state_dict()))
        heads.append(torch.randn(100))
    assert torch.equal(heads[2], heads[0])
    assert torch.equal(heads[3], heads[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B/32", "RN50x4"])
def test_full_size(name):
    embed_dim, resolution, layers, width, patch, *text = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = CLIP(embed_dim, resolution, layers, width, patch, *TEXT.values(), *text)
    expected = torch.rand(100)
    torch.manual_seed(0)
    ours.build_model(model.state_dict())
    assert torch.equal(torch.rand(100), expected)


def test_the_polynomial_is_of_the_generator():
    """Its terms of any 19,937 successive words sum up to nothing."""
    generator = torch.Generator().manual_seed(1)
    words = generator.get_state()[random_draws._STATE].view(torch.int64).numpy().astype("uint32")
    following = random_draws._following(words, 30_000)
    for start in (1, 5_000):
        assert not random_draws.reduce(lambda a, b: a ^ b, (following[start + k] for k in random_draws._EXPONENTS))
