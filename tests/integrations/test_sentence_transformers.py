"""Our folders as sentence-transformers loads them."""

import numpy as np
import pytest
import torch
from support.image_corpus import random_image
from support.pairs import gradients, pairs, training_model, worst_error

from hf_clip.model.modeling_hf_clip_resnet import freeze_batch_norm
from hf_clip.openai.convert import SENTENCE_TRANSFORMERS

pytestmark = pytest.mark.integration


@torch.no_grad()
def test_embeddings_are_equal_before_and_after_it_saves(any_clip, tmp_path, caplog):
    """Of both families and transformers' own CLIP; the folder names modules, so nothing is guessed."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(any_clip.folder), device="cpu")
    assert "Creating a new one" not in caplog.text
    theirs.save(str(tmp_path / "saved"))
    model, processor = any_clip.model, any_clip.processor
    texts = ["a photo of a cat", "two “curly” dogs", "cat " * 100]
    images = [random_image("RGB", 70, 50, np.random.default_rng(seed)) for seed in range(2)]
    ids = processor(text=texts, padding=True, truncation=True, return_tensors="pt").input_ids
    pixels = processor(images=images, return_tensors="pt").pixel_values
    expected = model.get_text_features(ids).pooler_output, model.get_image_features(pixels).pooler_output
    for loaded in (theirs, SentenceTransformer(str(tmp_path / "saved"), device="cpu")):
        np.testing.assert_array_equal(loaded.encode(texts), expected[0].numpy())
        np.testing.assert_array_equal(loaded.encode(images), expected[1].numpy())
    for name in SENTENCE_TRANSFORMERS:
        assert (any_clip.folder / name).is_file()


@pytest.mark.training
@pytest.mark.parametrize("mini_batch_size", [3, 16])
def test_its_cached_loss_is_ours(repositories, family, mini_batch_size):
    """Loss and gradients, in float64; it leaves the scale alone."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Normalize

    theirs = SentenceTransformer(str(repositories[family]), device="cpu")
    clip = freeze_batch_norm(theirs[0].model).double().train()
    theirs.append(Normalize())
    loss_of = CachedMultipleNegativesRankingLoss(
        theirs,
        scale=clip.logit_scale.exp().item(),
        mini_batch_size=mini_batch_size,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    batch = pairs(clip.config)
    pixels = batch["pixel_values"] = batch["pixel_values"].double()
    columns = [{"input_ids": batch["input_ids"], "modality": "text"}, {"pixel_values": pixels, "modality": "image"}]
    loss = loss_of(columns, torch.empty(0))
    loss.backward()
    found = {name: parameter.grad for name, parameter in clip.named_parameters() if parameter.grad is not None}
    expected_loss, expected = gradients(training_model(repositories[family]).double(), batch, mini_batch_size=4)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert expected.keys() - found.keys() == {"logit_scale"}
    del expected["logit_scale"]
    assert worst_error(found, expected) <= 1e-6
