"""What programs do with the original, done with its package and with ours: outputs, gradients and states are equal."""

import copy
from collections import Counter, defaultdict

import clip
import clip.clip
import clip.model
import clip.simple_tokenizer
import pytest
import torch
from support.clip_idioms import IDIOMS, Idiom, Program
from support.originals import inputs, load_original

import hf_clip.openai as ours

CASES = [
    pytest.param(idiom, family, id=f"{idiom.name}-{family}", marks=pytest.mark.slow if idiom.slow else ())
    for idiom in IDIOMS
    for family in idiom.families
]
equal: dict[str, Counter] = defaultdict(Counter)


@pytest.fixture(scope="module")
def models(archives):
    return {name: (load_original(path), ours.load(path, "cpu")[0]) for name, path in archives.items()}


def assert_same(right, got, path: str = "") -> None:
    """Equal in structure, type, dtype and bits."""
    if isinstance(right, torch.Tensor):
        right, got = (getattr(tensor, "_local_tensor", tensor) for tensor in (right, got))  # of sharded ones
        assert got.dtype == right.dtype, path
        assert got.shape == right.shape, path
        assert got.is_meta == right.is_meta, path
        same = got.is_meta or torch.allclose(got, right, rtol=0, atol=0, equal_nan=True)
        assert same, f"{path} is off by {(got.double() - right.double()).abs().max()}"
    elif isinstance(right, dict):
        assert list(right) == list(got), path
        for key in right:
            assert_same(right[key], got[key], f"{path}.{key}")
    elif isinstance(right, list | tuple):
        assert len(right) == len(got), path
        for index, (a, b) in enumerate(zip(right, got, strict=True)):
            assert_same(a, b, f"{path}[{index}]")
    else:
        assert right == got, path


@pytest.mark.parametrize(("idiom", "family"), CASES)
def test_idiom(idiom: Idiom, family: str, models, archives, tmp_path):
    original, mine = models[family]
    images, texts = inputs(original)
    results = []
    for package, model in ((clip, original), (ours, mine)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            torch.manual_seed(1)
            program = Program(
                package, copy.deepcopy(model), images.clone(), texts.clone(), archives[family], folder, patch
            )
            results.append((idiom.run(program), program.model.training, dict(program.model.named_parameters())))
    assert_same(*results)
    equal[idiom.group][family] += 1


def test_the_comparison_sees_differences(models):
    """It is no use unless it fails where one bit differs."""
    state = models["tiny ViT"][0].state_dict()
    other = {key: tensor.clone() for key, tensor in state.items()}
    assert_same(state, other)
    other["visual.proj"][0, 0] = torch.nextafter(other["visual.proj"][0, 0], torch.tensor(9.0))
    with pytest.raises(AssertionError, match=r"visual\.proj is off by"):
        assert_same(state, other)
    with pytest.raises(AssertionError):
        assert_same([1, 2], [1])


def test_table(capsys):
    """How many idioms of each kind were equal in the tests above."""
    if not equal:
        pytest.skip("no idiom was run in this process")
    with capsys.disabled():
        print(f"\n{'idioms':<32}{'all':>5}{'ViT':>6}{'ResNet':>8}")
        for group in dict.fromkeys(idiom.group for idiom in IDIOMS):
            names = [idiom for idiom in IDIOMS if idiom.group == group]
            print(f"{group:<32}{len(names):>5}{equal[group]['tiny ViT']:>6}{equal[group]['tiny ResNet']:>8}")
        print(f"{'together':<32}{len(IDIOMS):>5}{sum(sum(c.values()) for c in equal.values()):>10} equal")
