"""What the models offer every trainer, transformers' own included."""

from pathlib import Path

import pytest
import torch
from support.originals import inputs, load_original
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_clip import HFCLIPModel
from hf_clip.model.modeling_hf_clip_base import contrastive_loss
from hf_clip.model.modeling_hf_clip_resnet import freeze_batch_norm
from hf_clip.openai.key_mapping import to_hf

pytestmark = pytest.mark.training


def batch(model: HFCLIPModel, count: int = 6) -> dict[str, torch.Tensor]:
    size = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 400, (count, 9), generator=generator)
    ids[:, -1] = model.config.text_config.eos_token_id
    return {"input_ids": ids, "pixel_values": torch.randn(count, 3, size, size, generator=generator)}


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "num_batches" in k}


def test_frozen_statistics_survive_training_mode_with_equal_bits_and_keys(
    family: str, repositories: dict[str, Path]
) -> None:
    model = HFCLIPModel.from_pretrained(repositories[family])
    keys, before = list(model.state_dict()), statistics(model)
    expected = model(**batch(model), return_loss=True).loss
    loss = freeze_batch_norm(model).train()(**batch(model), return_loss=True).loss
    assert torch.equal(loss, expected)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(v, before[k]) for k, v in statistics(model).items())


def test_unfrozen_statistics_move_again(repositories: dict[str, Path]) -> None:
    model = HFCLIPModel.from_pretrained(repositories["tiny ResNet"])
    before = statistics(model)
    freeze_batch_norm(model).train()
    freeze_batch_norm(model, frozen=False)(**batch(model))
    assert not any(torch.equal(v, before[k]) for k, v in statistics(model).items())


def test_live_statistics_beside_untrained_weights_are_warned_of(
    repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an adapter on the convolutions has it, whose file holds no statistics."""
    said = []
    monkeypatch.setattr("hf_clip.model.modeling_hf_clip_resnet.logger.warning_once", said.append)
    model = HFCLIPModel.from_pretrained(repositories["tiny ResNet"]).requires_grad_(False).train()
    model(**batch(model))
    assert "freeze_batch_norm" in said[0]
    said.clear()
    freeze_batch_norm(model)(**batch(model))
    assert not said


def test_the_loss_is_one_function(family: str, repositories: dict[str, Path]) -> None:
    model = HFCLIPModel.from_pretrained(repositories[family])
    outputs = model(**batch(model), return_loss=True)
    assert torch.equal(outputs.loss, contrastive_loss(outputs.logits_per_image))


def test_no_gain_bias_or_position_decays(family: str, repositories: dict[str, Path]) -> None:
    model = HFCLIPModel.from_pretrained(repositories[family])
    spared = model.no_weight_decay()
    decayed = {n: p for n, p in model.named_parameters() if n not in spared}
    assert "logit_scale" in spared
    assert "text_model.embeddings.position_embedding.weight" in spared
    assert "text_model.embeddings.token_embedding.weight" in decayed
    assert all(p.ndim > 1 and "position" not in n for n, p in decayed.items())


def test_a_stock_trainer_collects_the_embeddings_only(
    family: str, repositories: dict[str, Path], tmp_path: Path
) -> None:
    model = HFCLIPModel.from_pretrained(repositories[family])
    rows = [
        dict(zip(("input_ids", "pixel_values"), row, strict=True))
        for row in zip(*(batch(model)[name] for name in ("input_ids", "pixel_values")), strict=True)
    ]
    arguments = TrainingArguments(tmp_path, report_to="none", remove_unused_columns=False, use_cpu=True)
    predictions = Trainer(model, arguments).predict(rows).predictions
    assert [array.shape for array in predictions] == [(6, model.config.projection_dim)] * 2


def test_gradients_of_an_image_are_the_originals_up_to_two_sums(archives, repositories, family):
    """A ResNet's in all bits. A ViT's down to the last layer's attention, whose input's gradient is a sum of three."""
    original, model = load_original(archives[family]), HFCLIPModel.from_pretrained(repositories[family]).eval()
    pixels = inputs(original)[0][:1]
    original.encode_image(pixels).sum().backward()
    model.encode_image(pixels).sum().backward()
    gradients = {key: p.grad if p.grad is not None else p for key, p in original.state_dict(keep_vars=True).items()}
    expected = to_hf({key: tensor.detach() for key, tensor in gradients.items()}, model.config)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    last = f"encoder.layers.{model.config.vision_config.num_hidden_layers - 1}." if "ViT" in family else ""
    exact = [name for name in found if last in name and "layer_norm1" not in name]
    assert len(exact) > 10
    assert [name for name in exact if not torch.equal(found[name], expected[name])] == []
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
