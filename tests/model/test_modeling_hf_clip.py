"""Both families on tiny models; the joint model's parity at full size is in test_parity.py."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from support.originals import convert_weights, fresh_original_model, inputs, load_original, original_model
from torch.export import Dim
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    CLIPConfig,
    CLIPModel,
    Trainer,
    TrainingArguments,
)

from hf_clip import (
    HFCLIPConfig,
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPResNetConfig,
    HFCLIPResNetModel,
    HFCLIPTextConfig,
    HFCLIPTextModel,
    HFCLIPTextModelWithProjection,
    HFCLIPVisionModel,
    HFCLIPVisionModelWithProjection,
)
from hf_clip.openai.infer_config import infer_config
from hf_clip.openai.key_mapping import to_hf, to_original

# differences between attention backends, compilers and the like in float32
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def repository(repositories, family):
    return repositories[family]


@pytest.fixture
def model(repository):
    return HFCLIPModel.from_pretrained(repository).eval()


@pytest.fixture
def batch(family):
    pixel_values, input_ids = inputs(original_model(family))
    return {"input_ids": input_ids, "pixel_values": pixel_values}


@pytest.fixture(autouse=True)
def _no_gradients(request):
    with torch.set_grad_enabled("training" in request.keywords):
        yield


def vision_class(family):
    return HFCLIPVisionModel if "ViT" in family else HFCLIPResNetModel


# --- the original ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "texts"), [(1, 1), (2, 3), (5, 2)])
def test_equals_the_original(model, family, archives, images, texts):
    original = load_original(archives[family])
    pixels, ids = inputs(original_model(family), images, texts)
    outputs = model(input_ids=ids, pixel_values=pixels)
    assert torch.equal(model.encode_image(pixels), original.encode_image(pixels))
    assert torch.equal(model.encode_text(ids), original.encode_text(ids))
    for ours, theirs in zip((outputs.logits_per_image, outputs.logits_per_text), original(pixels, ids), strict=True):
        assert torch.equal(ours, theirs)


def test_equals_the_original_in_mixed_fp16(repository, family, archives, batch):
    original = original_model(family)
    original.load_state_dict(load_original(archives[family]).state_dict())
    convert_weights(original)
    model = HFCLIPModel.from_pretrained(repository, dtype=torch.float16).eval()
    assert model.dtype == torch.float16
    state_dict = to_original(model.state_dict(), model.config)
    assert {key: tensor.dtype for key, tensor in state_dict.items()} == {
        key: tensor.dtype for key, tensor in original.state_dict().items()
    }
    outputs = model(**batch)
    assert torch.equal(outputs.logits_per_image, original(batch["pixel_values"], batch["input_ids"])[0])
    assert outputs.logits_per_image.dtype == torch.float16


def test_initialisation_is_the_original_s(family):
    """Standard deviations of every tensor; what is constant in the original is that constant here."""
    theirs = fresh_original_model(family)
    config = infer_config(theirs.state_dict())
    ours = to_original(HFCLIPModel(config).state_dict(), config)
    for key, tensor in theirs.state_dict().items():
        if tensor.numel() > 1 and tensor.float().std() > 0:
            # the standard error of a standard deviation, five times
            tolerance = 5 / (2 * tensor.numel()) ** 0.5
            assert ours[key].std() == pytest.approx(tensor.std().item(), rel=max(tolerance, 0.02) * 1.5), key
        else:
            assert torch.equal(ours[key], tensor), key


def test_stock_repositories_load(repositories, batch, family, tmp_path):
    if "ResNet" in family:
        pytest.skip("transformers has no CLIP ResNet")
    stock_config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256}
    stock = CLIPModel(
        CLIPConfig(
            text_config=stock_config,
            vision_config={**stock_config, "image_size": 32, "patch_size": 8},
            projection_dim=64,
        )
    ).eval()
    stock.save_pretrained(tmp_path)
    model = HFCLIPModel.from_pretrained(tmp_path).eval()
    expected = stock(**batch)
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        torch.testing.assert_close(model(**batch)[name], expected[name], **CLOSE)


# --- a model of the library -------------------------------------------------------------------------------------------


def test_auto_classes(repository):
    assert isinstance(AutoModel.from_pretrained(repository), HFCLIPModel)
    assert isinstance(AutoModelForZeroShotImageClassification.from_pretrained(repository), HFCLIPModel)
    assert isinstance(AutoModelForImageClassification.from_pretrained(repository), HFCLIPForImageClassification)


def test_saving_and_loading(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, report = HFCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(loaded.eval()(**batch).logits_per_image, model(**batch).logits_per_image)


def test_saving_keeps_the_mixed_dtypes(repository, tmp_path):
    model = HFCLIPModel.from_pretrained(repository, dtype=torch.float16)
    model.save_pretrained(tmp_path)
    loaded = HFCLIPModel.from_pretrained(tmp_path)
    assert {key: tensor.dtype for key, tensor in loaded.state_dict().items()} == {
        key: tensor.dtype for key, tensor in model.state_dict().items()
    }


def test_towers_load_from_a_joint_folder(repository, family, model, batch):
    pixels, ids = batch["pixel_values"], batch["input_ids"]
    towers = {
        HFCLIPTextModel: lambda tower: (tower(ids).last_hidden_state, model.text_model(ids).last_hidden_state),
        HFCLIPTextModelWithProjection: lambda tower: (tower(ids).text_embeds, model.encode_text(ids)),
        vision_class(family): lambda tower: (tower(pixels).pooler_output, model.vision_model(pixels).pooler_output),
        HFCLIPVisionModelWithProjection: lambda tower: (tower(pixels).image_embeds, model.encode_image(pixels)),
    }
    for tower_class, outputs in towers.items():
        tower, report = tower_class.from_pretrained(repository, output_loading_info=True)
        assert not any(report.values()), (tower_class, report)
        assert torch.equal(*outputs(tower.eval())), tower_class


def test_towers_load_from_their_own_folder(repository, family, batch, tmp_path):
    for number, tower_class in enumerate(
        (HFCLIPTextModel, HFCLIPTextModelWithProjection, vision_class(family), HFCLIPVisionModelWithProjection)
    ):
        tower = tower_class.from_pretrained(repository).eval()
        tower.save_pretrained(tmp_path / str(number))
        loaded, report = tower_class.from_pretrained(tmp_path / str(number), output_loading_info=True)
        assert not any(report.values()), (tower_class, report)
        inputs_ = batch["input_ids"] if "Text" in tower_class.__name__ else batch["pixel_values"]
        assert torch.equal(loaded.eval()(inputs_)[0], tower(inputs_)[0]), tower_class


def test_a_tower_of_the_other_family_is_refused(repository, family):
    other = HFCLIPResNetModel if "ViT" in family else HFCLIPVisionModel
    with pytest.raises(ValueError, match=f"use {vision_class(family).__name__}"):
        other.from_pretrained(repository)


@pytest.mark.parametrize("attention", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_backends_agree(repository, batch, model, attention):
    other = HFCLIPModel.from_pretrained(repository, attn_implementation=attention).eval()
    torch.testing.assert_close(other(**batch).logits_per_image, model(**batch).logits_per_image, **CLOSE)


def test_hidden_states_and_attentions(repository, batch, family):
    model = HFCLIPModel.from_pretrained(repository, attn_implementation="eager").eval()
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    text, vision = outputs.text_model_output, outputs.vision_model_output
    assert [state.shape for state in text.hidden_states] == [(3, 77, 64)] * 3
    assert [weights.shape for weights in text.attentions] == [(3, 1, 77, 77)] * 2
    assert text.attentions[0].triu(1).abs().max() == 0
    if "ViT" in family:
        assert [state.shape for state in vision.hidden_states] == [(2, 17, 64)] * 3
        assert [weights.shape for weights in vision.attentions] == [(2, 1, 17, 17)] * 2
    else:
        shapes = [(2, 64 * 2**stage, 16 // 2**stage, 16 // 2**stage) for stage in range(4)]
        assert [state.shape for state in vision.hidden_states] == [(2, 16, 16, 16), *shapes]
        assert [weights.shape for weights in vision.attentions] == [(2, 8, 1, 5)]
    assert torch.equal(vision.hidden_states[-1], vision.last_hidden_state)
    for weights in (*text.attentions, *vision.attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_tuples(model, batch):
    assert torch.equal(model(**batch, return_dict=False)[0], model(**batch).logits_per_image)
    assert isinstance(model.get_image_features(batch["pixel_values"], return_dict=False), tuple)
    model.config.return_dict = False
    assert isinstance(model.encode_image(batch["pixel_values"]), torch.Tensor)
    assert isinstance(model(**batch), tuple)


def test_features_are_the_pooler_output(model, batch):
    assert torch.equal(
        model.get_image_features(batch["pixel_values"]).pooler_output, model.encode_image(batch["pixel_values"])
    )
    assert torch.equal(model.get_text_features(batch["input_ids"]).pooler_output, model.encode_text(batch["input_ids"]))


def test_input_embeddings(model, repository, family):
    for tower_class in (HFCLIPTextModel, HFCLIPTextModelWithProjection, HFCLIPModel):
        tower = tower_class.from_pretrained(repository)
        assert tower.get_input_embeddings().weight.shape == (49408, 64)
        tower.resize_token_embeddings(49500)
        assert tower.get_input_embeddings().weight.shape == (49500, 64)
    for tower_class in (vision_class(family), HFCLIPVisionModelWithProjection, HFCLIPForImageClassification):
        assert isinstance(tower_class.from_pretrained(repository).get_input_embeddings(), torch.nn.Conv2d)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_padding_does_not_matter(model, batch):
    """Whatever follows the first EOT: zeros, more EOTs, fewer columns, a mask or none."""
    ids = batch["input_ids"]
    expected = model.encode_text(ids)
    longest = (ids == 49407).int().argmax(-1).max() + 1
    torch.testing.assert_close(model.encode_text(ids[:, :longest]), expected, **CLOSE)
    after_eot = (ids == 49407).cumsum(-1).bool()
    assert torch.equal(model.encode_text(ids.masked_fill(after_eot, 49407)), expected)
    mask = ((ids == 49407).cumsum(-1) - (ids == 49407).int() == 0).long()
    torch.testing.assert_close(model.encode_text(ids, mask), expected, **CLOSE)


def test_a_mask_is_honoured(model, batch):
    mask = torch.ones_like(batch["input_ids"])
    mask[:, 1] = 0
    changed = batch["input_ids"].clone()
    changed[:, 1] = 1000
    assert not torch.equal(model.encode_text(changed), model.encode_text(batch["input_ids"]))
    torch.testing.assert_close(model.encode_text(changed, mask), model.encode_text(batch["input_ids"], mask), **CLOSE)


def test_too_long_texts(model):
    with pytest.raises(ValueError, match="78 tokens long, the model reads at most 77: pass truncation=True"):
        model.encode_text(torch.zeros(1, 78, dtype=torch.long))


# --- images -----------------------------------------------------------------------------------------------------------


def test_other_image_sizes(model, batch, family):
    pixels = batch["pixel_values"]
    assert torch.equal(model.encode_image(pixels, interpolate_pos_encoding=True), model.encode_image(pixels))
    larger = torch.nn.functional.interpolate(pixels, scale_factor=(2, 3))
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        model.encode_image(larger)
    outputs = model.get_image_features(larger, interpolate_pos_encoding=True)
    assert outputs.pooler_output.shape == (2, 64)
    assert outputs.last_hidden_state.shape == ((2, 8 * 12 + 1, 64) if "ViT" in family else (2, 512, 4, 6))
    # neighboring sizes give neighboring embeddings
    similarity = torch.cosine_similarity(outputs.pooler_output, model.encode_image(pixels))
    assert (similarity > 0.5).all()


@pytest.mark.parametrize("stretch", [(1, 1), (2, 3)])
def test_dense_features_lie_as_in_the_image(model, family, batch, stretch):
    """Positions go row by row; their mean has the bits that the classifier always had."""
    pixel_values = torch.nn.functional.interpolate(batch["pixel_values"], scale_factor=stretch)
    tower, height, width = model.vision_model, *pixel_values.shape[-2:]
    hidden = tower(pixel_values, interpolate_pos_encoding=True).last_hidden_state
    features = tower.dense_features(pixel_values, interpolate_pos_encoding=True)
    if "ResNet" in family:
        assert torch.equal(features, hidden)
    else:
        patch = tower.config.patch_size
        assert features.shape == (2, tower.config.hidden_size, height // patch, width // patch)
        assert torch.equal(features.flatten(2).transpose(1, 2), hidden[:, 1:])
        assert torch.equal(features.mean((2, 3)), hidden[:, 1:].mean(1))


def test_image_classification(repository, batch, tmp_path):
    model = HFCLIPForImageClassification.from_pretrained(repository, num_labels=5).eval()
    # the classifier is new, the tower is not
    stored = load_file(repository / "model.safetensors")
    for key, tensor in model.vision_model.state_dict().items():
        assert torch.equal(tensor, stored[f"vision_model.{key}"].to(tensor.dtype)), key
    outputs = model(batch["pixel_values"], labels=torch.tensor([1, 4]))
    assert outputs.logits.shape == (2, 5)
    assert outputs.loss > 0
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(batch["pixel_values"]).logits, outputs.logits)


# --- compilers and devices --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiles_without_graph_breaks(model, batch):
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(**batch).logits_per_image, model(**batch).logits_per_image, **CLOSE)


@pytest.mark.slow
def test_exports_with_dynamic_axes(model, batch):
    axes = {"input_ids": {0: Dim("texts"), 1: Dim("tokens", max=77)}, "pixel_values": {0: Dim("images")}}
    exported = torch.export.export(model, (), batch, dynamic_shapes=axes).module()
    other = {
        "input_ids": batch["input_ids"][:2, :20],
        "pixel_values": torch.cat([batch["pixel_values"]] * 2),
    }
    torch.testing.assert_close(exported(**other).logits_per_image, model(**other).logits_per_image, **CLOSE)


def test_meta_device(model, batch):
    with torch.device("meta"):
        empty = HFCLIPModel(model.config)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.eval()(**batch).logits_per_image, model(**batch).logits_per_image)


def test_offloading(repository, model, batch, tmp_path):
    parts = {name: "cpu" for name, _ in model.named_children()} | {"logit_scale": "cpu", "text_model": "disk"}
    offloaded = HFCLIPModel.from_pretrained(repository, device_map=parts, offload_folder=tmp_path).eval()
    assert torch.equal(offloaded(**batch).logits_per_image, model(**batch).logits_per_image)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model, repository, batch, dtype):
    """Loaded in a half precision, and cast whole after loading."""
    expected = model(**batch).image_embeds
    for half in (HFCLIPModel.from_pretrained(repository, dtype=dtype).eval(), copy.deepcopy(model).to(dtype)):
        embeds = half(**batch).image_embeds
        assert embeds.dtype == dtype
        torch.testing.assert_close(embeds.float(), expected, rtol=0, atol=0.03)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.training
@pytest.mark.parametrize(
    "autocast",
    [pytest.param(False, id="float32"), pytest.param(True, id="bfloat16 autocast", marks=pytest.mark.slow)],
)
def test_training_lowers_the_loss(model, family, autocast):
    pixel_values, input_ids = inputs(original_model(family), images=4, texts=4)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids, pixel_values, return_loss=True).loss
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.training
def test_loss_is_the_symmetric_cross_entropy(model, family):
    pixel_values, input_ids = inputs(original_model(family), images=3, texts=3)
    outputs = model(input_ids, pixel_values, return_loss=True)
    pairs = torch.arange(3)
    expected = [torch.nn.functional.cross_entropy(logits, pairs) for logits in (outputs[1], outputs[2])]
    torch.testing.assert_close(outputs.loss, sum(expected) / 2)


@pytest.mark.training
def test_gradient_checkpointing_gives_the_same_gradients(model, batch):
    pixels, ids = batch["pixel_values"], batch["input_ids"][:2]
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # or the second run would move its statistics
    model(ids, pixels, return_loss=True).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    # transformers 5.24 renamed it
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    model(ids, pixels, return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_defaults_are_published_sizes():
    with torch.device("meta"):
        vit = HFCLIPModel(HFCLIPConfig())
        resnet = HFCLIPModel(HFCLIPConfig(vision_config=HFCLIPResNetConfig(), projection_dim=1024))
    assert sum(parameter.numel() for parameter in vit.parameters()) == 151_277_313
    assert sum(parameter.numel() for parameter in resnet.parameters()) == 102_007_137


def test_mapped_state_dict_loads_strictly(family):
    original = original_model(family)
    config = infer_config(original.state_dict())
    HFCLIPModel(config).load_state_dict(to_hf(original.state_dict(), config))


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize(
    ("eos_token_id", "places"),
    [(9, [2, 3, 1]), (2, [2, 3, 4]), (None, [2, 3, 4])],
    ids=["first EOT, else highest", "legacy: highest", "none: highest"],
)
def test_where_a_text_ends(eos_token_id, places, optimized):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    torch.manual_seed(0)
    config = HFCLIPTextConfig(vocab_size=12, bos_token_id=8, eos_token_id=eos_token_id, **sizes)
    model = HFCLIPTextModelWithProjection(config).eval()
    ids = torch.tensor([[8, 1, 9, 0, 0], [8, 3, 4, 9, 0], [8, 9, 4, 1, 11]])
    if eos_token_id == 9:
        ids[1, 3], places = 7, [2, 0, 1]  # no EOT: the highest is 8
    hidden = model.text_model(ids).last_hidden_state
    expected = model.text_projection(hidden[torch.arange(3), places])
    if optimized:
        model.optimize_for_inference()
    torch.testing.assert_close(model(ids).text_embeds, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.training
def test_accumulating_under_trainer_equals_one_batch(repositories, tmp_path):
    """The ViT's classifier: a ResNet's BatchNorm sees other statistics in other batches."""
    generator = torch.Generator().manual_seed(0)
    rows = [{"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": number % 2} for number in range(8)]

    def trained(batch_size: int) -> dict[str, torch.Tensor]:
        model = HFCLIPForImageClassification.from_pretrained(repositories["tiny ViT"], num_labels=2)
        with torch.no_grad():
            for parameter in model.classifier.parameters():
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
        arguments = TrainingArguments(
            str(tmp_path / str(batch_size)),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=rows).train()
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    one_batch, accumulated = trained(8), trained(1)
    for name, parameter in one_batch.items():
        torch.testing.assert_close(accumulated[name], parameter, rtol=1e-4, atol=1e-5, msg=name)
