"""Our towers and processors as parts of a Stable Diffusion pipeline."""

import pytest
import torch
from transformers import CLIPTokenizer

from hf_clip import (
    HFCLIPImageProcessor,
    HFCLIPTextConfig,
    HFCLIPTextModel,
    HFCLIPTokenizer,
    HFCLIPVisionConfig,
    HFCLIPVisionModelWithProjection,
)
from hf_clip.openai.vocabulary import load_vocabulary

pytestmark = pytest.mark.integration
WIDTH = 32
TOWER = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def pipe():
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    channels = (32, 64)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=8,
    )
    return StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        scheduler=DDIMScheduler(),
        text_encoder=HFCLIPTextModel(HFCLIPTextConfig(**TOWER)).eval(),
        tokenizer=HFCLIPTokenizer(*load_vocabulary()),
        feature_extractor=HFCLIPImageProcessor(),
        image_encoder=HFCLIPVisionModelWithProjection(HFCLIPVisionConfig(**TOWER)).eval(),
        safety_checker=None,
        requires_safety_checker=False,
    )


def draw(pipe, prompt: str = "a cat") -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = {"height": 32, "width": 32}
    return pipe(prompt, num_inference_steps=2, output_type="pt", generator=generator, **size).images


def test_a_pipeline_is_saved_and_loaded(pipe, tmp_path):
    """Also where a part is passed: diffusers compares it with the base class that its module names."""
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path)
    for parts in ({}, {"tokenizer": pipe.tokenizer}, {"text_encoder": pipe.text_encoder}):
        loaded = type(pipe).from_pretrained(tmp_path, **parts)
        assert type(loaded.text_encoder) is HFCLIPTextModel
        assert type(loaded.tokenizer) is HFCLIPTokenizer
        assert type(loaded.feature_extractor) is HFCLIPImageProcessor
        assert type(loaded.image_encoder) is HFCLIPVisionModelWithProjection
        assert torch.equal(draw(loaded), expected)


def test_textual_inversion(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    loaded.load_textual_inversion({"<toy>": torch.ones(WIDTH)}, token="<toy>")
    [token] = loaded.tokenizer("<toy>", add_special_tokens=False)["input_ids"]
    assert torch.equal(loaded.text_encoder.get_input_embeddings().weight[token], torch.ones(WIDTH))
    assert not torch.equal(draw(loaded, "a <toy>"), draw(loaded, "a cat"))


def test_the_padding_that_stable_diffusion_was_trained_with(tmp_path):
    """By an argument; without it our padding is the original's."""
    CLIPTokenizer(*load_vocabulary()).save_pretrained(tmp_path)
    options = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
    expected = CLIPTokenizer.from_pretrained(tmp_path)("a cat", **options).input_ids
    kept = HFCLIPTokenizer.from_pretrained(tmp_path, pad_token="<|endoftext|>")
    kept.save_pretrained(tmp_path / "kept")
    for tokenizer in (kept, HFCLIPTokenizer.from_pretrained(tmp_path / "kept")):
        assert torch.equal(tokenizer("a cat", **options).input_ids, expected)
    assert not torch.equal(HFCLIPTokenizer.from_pretrained(tmp_path)("a cat", **options).input_ids, expected)
