"""The ResNet alone; what it shares with the ViT is tested in test_modeling_hf_clip.py."""

import pytest
import torch
from support.originals import inputs, original_model

from hf_clip import HFCLIPResNetConfig, HFCLIPResNetModel
from hf_clip.openai.infer_config import infer_config
from hf_clip.openai.key_mapping import to_hf


@pytest.fixture
def original():
    return original_model("tiny ResNet")


@pytest.fixture
def model(original):
    config = infer_config(original.state_dict())
    model = HFCLIPResNetModel(config.vision_config).eval()
    state_dict = to_hf(original.state_dict(), config)
    model.load_state_dict(
        {
            key.removeprefix("vision_model."): value
            for key, value in state_dict.items()
            if key.startswith("vision_model.")
        }
    )
    return model


@torch.no_grad()
def test_stages_equal_the_original(model, original):
    pixels, _ = inputs(original)
    stages = []
    original.visual.avgpool.register_forward_hook(lambda _module, _inputs, output: stages.append(output))
    for stage in (original.visual.layer1, original.visual.layer2, original.visual.layer3, original.visual.layer4):
        stage.register_forward_hook(lambda _module, _inputs, output: stages.append(output))
    embeddings = original.encode_image(pixels)
    outputs = model(pixels, output_hidden_states=True)
    assert torch.equal(outputs.pooler_output, embeddings)
    assert len(outputs.hidden_states) == 5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs.hidden_states, stages, strict=True))
    assert torch.equal(outputs.last_hidden_state, stages[-1])


@torch.no_grad()
def test_dense_features_of_any_size(model):
    outputs = model(torch.randn(1, 3, 160, 96), interpolate_pos_encoding=True)
    assert outputs.last_hidden_state.shape == (1, 512, 5, 3)
    assert outputs.pooler_output.shape == (1, 64)


def test_training_updates_the_statistics(model):
    before = model.stem.bn1.running_mean.clone()
    model.train()(torch.randn(2, 3, 64, 64))
    assert not torch.equal(model.stem.bn1.running_mean, before)
    assert model.stem.bn1.num_batches_tracked == 8


def test_a_fresh_block_is_the_identity():
    torch.manual_seed(0)
    model = HFCLIPResNetModel(HFCLIPResNetConfig(width=8, depths=(2, 1, 1, 1), num_attention_heads=4, image_size=32))
    x = torch.rand(1, 32, 4, 4)
    assert torch.equal(model.stages[0][1].eval()(x), x)


def test_integers_stay_integers_in_half_precision(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = HFCLIPResNetModel.from_pretrained(tmp_path, dtype=torch.float16)
    dtypes = {key: tensor.dtype for key, tensor in half.state_dict().items()}
    assert dtypes["stem.bn1.num_batches_tracked"] == torch.int64
    assert dtypes["stages.1.0.shortcut.bn.running_var"] == torch.float32
    assert dtypes["stages.1.0.shortcut.conv.weight"] == torch.float16
