import pytest
import torch
from support.originals import ARCHITECTURES, original_model

from hf_clip import HFCLIPResNetConfig
from hf_clip.openai.infer_config import NotCLIPError, infer_config


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_are_those_the_model_was_built_with(name):
    embed_dim, resolution, layers, width, patch_size, text_width, text_heads, text_layers = ARCHITECTURES[name]
    with torch.device("meta"):
        config = infer_config(original_model(name).state_dict())
    text, vision = config.text_config, config.vision_config
    assert config.projection_dim == text.projection_dim == vision.projection_dim == embed_dim
    assert (text.hidden_size, text.num_attention_heads, text.num_hidden_layers) == (text_width, text_heads, text_layers)
    assert (text.vocab_size, text.max_position_embeddings, text.eos_token_id) == (49408, 77, 49407)
    assert vision.image_size == resolution
    if isinstance(vision, HFCLIPResNetConfig):
        assert (vision.width, tuple(vision.depths), vision.num_attention_heads) == (width, layers, width * 32 // 64)
    else:
        assert (vision.hidden_size, vision.patch_size, vision.num_hidden_layers) == (width, patch_size, layers)
        assert (vision.num_attention_heads, vision.intermediate_size) == (width // 64, width * 4)


def test_another_vocabulary(family):
    state_dict = original_model(family).state_dict()
    embedding = state_dict["token_embedding.weight"]
    for tokens, eos in ((50000, 49407), (1000, 999)):
        state_dict["token_embedding.weight"] = embedding.new_zeros(tokens, embedding.shape[1])
        config = infer_config(state_dict).text_config
        assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (tokens, eos - 1, eos)


@pytest.mark.parametrize(
    "state_dict", [{}, {"weight": torch.zeros(2, 2)}, torch.nn.Transformer(8, 2, 1, 1, 8).state_dict()]
)
def test_other_models_are_refused(state_dict):
    with pytest.raises(NotCLIPError, match="no tensor 'text_projection'"):
        infer_config(state_dict)


def test_positions_that_are_no_grid(family):
    state_dict = original_model(family).state_dict()
    key = next(key for key in state_dict if key.startswith("visual.") and key.endswith("positional_embedding"))
    state_dict[key] = state_dict[key][:-1]
    with pytest.raises(NotCLIPError, match="not a square and one"):
        infer_config(state_dict)
