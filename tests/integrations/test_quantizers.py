"""Weights that a quantizer has packed."""

import pytest
import torch
from support.originals import inputs, original_model
from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from hf_clip import HFCLIPModel

pytestmark = pytest.mark.integration


def torchao() -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


QUANTIZERS = {  # and the least cosine to exact embeddings
    "torchao": (torchao, 0.99),
    "bitsandbytes 8 bit": (lambda: BitsAndBytesConfig(load_in_8bit=True), 0.99),
    "bitsandbytes 4 bit": (lambda: BitsAndBytesConfig(load_in_4bit=True), 0.9),
    "quanto": (lambda: QuantoConfig(weights="int8"), 0.99),
}


@torch.no_grad()
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_packed_weights_compute_and_are_not_optimized(repositories, family, quantizer):
    config, least = QUANTIZERS[quantizer]
    pixels, ids = inputs(original_model(family))
    exact = HFCLIPModel.from_pretrained(repositories[family]).eval()(ids, pixels)
    model = HFCLIPModel.from_pretrained(repositories[family], quantization_config=config(), device_map="cpu").eval()
    packed = model(ids, pixels)
    for name in ("image_embeds", "text_embeds"):
        assert torch.cosine_similarity(packed[name], exact[name]).min() > least
    assert model.dtype == torch.float32
    with pytest.raises(ValueError, match="plain weights"):
        model.optimize_for_inference()


@torch.no_grad()
def test_packing_in_place(repositories, family):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    pixels, ids = inputs(original_model(family))
    model = HFCLIPModel.from_pretrained(repositories[family]).eval()
    exact = model(ids, pixels)
    quantize_(model, Int8WeightOnlyConfig())
    assert torch.cosine_similarity(model(ids, pixels).text_embeds, exact.text_embeds).min() > 0.99
