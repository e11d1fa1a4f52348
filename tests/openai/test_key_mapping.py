import pytest
import torch
from support.originals import ARCHITECTURES, original_model

from hf_clip import HFCLIPModel
from hf_clip.openai.infer_config import infer_config
from hf_clip.openai.key_mapping import BOOKKEEPING, KeyMappingError, rules, to_hf, to_original


@pytest.fixture
def state_dict(family):
    return original_model(family).state_dict()


def test_there_and_back_is_the_identity(state_dict):
    config = infer_config(state_dict)
    for dtype in (torch.float32, torch.float16):
        original = {key: tensor.to(dtype) for key, tensor in state_dict.items()}
        back = to_original(to_hf(original, config), config)
        assert back.keys() == original.keys()
        assert all(torch.equal(back[key], original[key]) and back[key].dtype == dtype for key in original)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_key_of_every_architecture_is_mapped_once(name):
    with torch.device("meta"):
        state_dict = original_model(name).state_dict()
    config = infer_config(state_dict)
    mapped = to_hf(state_dict, config)
    with torch.device("meta"):
        ours = HFCLIPModel(config).state_dict()
    assert {key: tensor.shape for key, tensor in mapped.items()} == {key: tensor.shape for key, tensor in ours.items()}
    templates = [rule.original for rule in rules(config)]
    assert len(set(templates)) == len(templates)


def test_sizes_are_dropped_by_name(state_dict):
    config = infer_config(state_dict)
    sizes = {key: torch.tensor(7) for key in BOOKKEEPING}
    assert to_hf(state_dict | sizes, config).keys() == to_hf(state_dict, config).keys()


DAMAGE = {
    "missing ln_final.bias": lambda state: state.pop("ln_final.bias"),
    "missing transformer.resblocks.1.attn.in_proj_weight": lambda state: state.pop(
        "transformer.resblocks.1.attn.in_proj_weight"
    ),
    "unknown head.weight": lambda state: state.update({"head.weight": torch.zeros(3)}),
    "missing logit_scale": lambda state: state.update(scale=state.pop("logit_scale")),
    r"of another shape ln_final.bias \(63,\) instead of \(64,\)": lambda state: state.update(
        {"ln_final.bias": torch.zeros(63)}
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_named(state_dict, message):
    config = infer_config(state_dict)
    DAMAGE[message](state_dict)
    with pytest.raises(KeyMappingError, match=message):
        to_hf(state_dict, config)


def test_damage_is_named_on_the_way_back(state_dict):
    config = infer_config(state_dict)
    ours = to_hf(state_dict, config)
    del ours["text_model.encoder.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(KeyMappingError, match=r"missing text_model\.encoder\.layers\.0\.self_attn\.k_proj\.bias"):
        to_original(ours, config)


def test_long_lists_are_cut(state_dict):
    extra = {f"extra.{number:02}": torch.zeros(1) for number in range(20)}
    with pytest.raises(KeyMappingError, match=r"unknown extra\.00, .*extra\.07 and 12 more$"):
        to_hf(state_dict | extra, infer_config(state_dict))
