"""LoRA by PEFT, on both families: train, save, load, merge."""

import pytest
import torch
from support.originals import inputs, original_model

from hf_clip import HFCLIPModel
from hf_clip.model.modeling_hf_clip_resnet import freeze_batch_norm

pytestmark = [pytest.mark.integration, pytest.mark.training]


@pytest.fixture
def batch(family):
    pixels, ids = inputs(original_model(family), images=3, texts=3)
    return {"input_ids": ids, "pixel_values": pixels}


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["out_proj"], "all-linear"], ids=str)
def test_an_adapter_learns_and_comes_back(repositories, family, batch, targets, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = HFCLIPModel.from_pretrained(repositories[family])
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(r=2, target_modules=targets)).eval()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.005)
    first = model(**batch, return_loss=True).loss
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch, return_loss=True).loss.backward()
        optimizer.step()
    trained = model(**batch, return_loss=True)
    assert trained.loss < first
    model.save_pretrained(tmp_path)

    with torch.no_grad():
        fresh = HFCLIPModel.from_pretrained(repositories[family])
        loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
        assert torch.equal(loaded(**batch).logits_per_image, trained.logits_per_image)
        merged = loaded.merge_and_unload()
        assert type(merged) is HFCLIPModel
        torch.testing.assert_close(merged(**batch).logits_per_image, trained.logits_per_image, rtol=1e-4, atol=1e-4)
        assert merged.state_dict().keys() == before.keys()


BOTH = [
    {"target_modules": ["token_embedding"]},
    {"target_modules": ["position_embedding"]},
    {"target_modules": ["fc1", "fc2"]},
    {"target_modules": ["text_projection"]},
    {"target_modules": r".*vision_model.*\.(q_proj|v_proj)"},
    {"target_modules": ["q_proj"], "modules_to_save": ["text_projection", "final_layer_norm"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["position_embedding"]},
    {"target_modules": ["q_proj"], "trainable_token_indices": {"token_embedding": [5, 6]}},
    {"target_modules": "all-linear", "use_dora": True},
]
ONE = {
    "tiny ViT": [{"target_modules": ["patch_embedding"]}, {"target_modules": ["visual_projection"]}],
    "tiny ResNet": [
        {"target_modules": ["conv1", "conv2", "conv3"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["attention_pool"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["bn1"]},
    ],
}


@pytest.mark.parametrize(("family", "config"), [(f, c) for f in ONE for c in (*BOTH, *ONE[f])], ids=str)
def test_whatever_one_would_name_trains_and_comes_back(repositories, family, config, batch, tmp_path):
    """In training mode too, with frozen BatchNorms; merged, saved and loaded as a plain model."""
    from peft import LoraConfig, PeftModel, get_peft_model

    base = freeze_batch_norm(HFCLIPModel.from_pretrained(repositories[family]))
    model = get_peft_model(base, LoraConfig(r=2, **config)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.01)
    model(**batch, return_loss=True).loss.backward()
    model.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(**batch).logits_per_image
        fresh = HFCLIPModel.from_pretrained(repositories[family])
        assert not torch.equal(fresh(**batch).logits_per_image, expected)
        loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        assert torch.equal(loaded(**batch).logits_per_image, expected)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits_per_image, expected, rtol=1e-4, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        plain = HFCLIPModel.from_pretrained(tmp_path / "merged")
        assert torch.equal(plain(**batch).logits_per_image, merged(**batch).logits_per_image)


def test_what_cannot_be_wrapped_says_what_can(repositories):
    from peft import LoraConfig, get_peft_model

    model = HFCLIPModel.from_pretrained(repositories["tiny ResNet"])
    with pytest.raises(ValueError, match=r"a ResNet projects in vision_model\.attention_pool: name out_proj"):
        get_peft_model(model, LoraConfig(target_modules=["visual_projection"]))
