"""Each text is encoded once, with texts of like length."""

import pytest
import torch
from support.plain import LABELS, LONG_LABELS, load, plain_text_embeds, spy

from hf_clip import HFCLIPTextModelWithProjection, HFCLIPVisionModelWithProjection
from hf_clip.embedding.images import embed_images
from hf_clip.embedding.texts import embed_texts
from hf_clip.zero_shot.classifier import ZeroShotClassifier


def test_each_text_is_encoded_once_and_never_padded_to_the_context(any_clip, monkeypatch):
    texts = [*LONG_LABELS, *LABELS, *LONG_LABELS]
    shapes = spy(monkeypatch, any_clip.model, "get_text_features")
    embeds = embed_texts(any_clip.model, any_clip.processor, texts, batch_tokens=30)
    assert all(rows * width <= 30 for rows, width in shapes)
    assert sum(rows for rows, _ in shapes) == len(set(texts))
    widths = [width for _, width in shapes]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] < 20
    torch.testing.assert_close(embeds, plain_text_embeds(any_clip, texts), rtol=0, atol=1e-6)


def test_short_and_long_texts_do_not_share_a_batch(tiny, monkeypatch):
    texts = ["dog " * words for words in (70, 1, 30, 2, 45, 14, 60, 15, 16)]  # and two tokens more
    shapes = spy(monkeypatch, tiny.model, "get_text_features")
    embed_texts(tiny.model, tiny.processor, texts)
    assert [tuple(shape) for shape in shapes] == [(3, 16), (2, 18), (2, 47), (2, 72)]


def test_normalize_is_optional(tiny, paths):
    for embed, inputs in ((embed_images, paths), (embed_texts, LABELS)):
        raw = embed(tiny.model, tiny.processor, inputs, normalize=False)
        assert not torch.allclose(raw.norm(dim=-1), torch.ones(len(inputs)))
        unit = embed(tiny.model, tiny.processor, inputs)
        assert torch.equal(raw / raw.norm(dim=-1, keepdim=True), unit)


def test_one_tower_and_its_part_of_the_processor(folders, family, images):
    both = load(folders[family])
    vision = HFCLIPVisionModelWithProjection.from_pretrained(folders[family]).eval()
    text = HFCLIPTextModelWithProjection.from_pretrained(folders[family]).eval()
    image_embeds = embed_images(vision, both.processor.image_processor, images)
    text_embeds = embed_texts(text, both.processor.tokenizer, LABELS)
    assert torch.equal(image_embeds, embed_images(both.model, both.processor, images))
    assert torch.equal(text_embeds, embed_texts(both.model, both.processor, LABELS))
    with pytest.raises(TypeError, match="HFCLIPTextModelWithProjection has no get_image_features"):
        ZeroShotClassifier(text, both.processor, LABELS)
    with pytest.raises(TypeError, match=r"HFCLIP\w+Model gives no image embeddings"):
        embed_images(vision.vision_model, both.processor, images)
