"""The same random weights in the original, stock transformers, open_clip and hf_clip."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import clip
import open_clip
import torch
from clip.model import convert_weights
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel, CLIPProcessor

from hf_clip import HFCLIPModel, HFCLIPProcessor
from hf_clip.embedding.texts import embed_texts
from hf_clip.openai.convert import DType, Layout, make_processor, to_repository

from .common import ORIGINAL
from .originals import original_model

STOCK, OPEN_CLIP, EXACT, OPTIMIZED = "transformers", "open_clip", "hf_clip", "hf_clip optimized"


@dataclass
class Peers:
    """One architecture, in eval mode, in float32. transformers has no ResNet: `stock` is None there."""

    original: nn.Module
    open_clip: nn.Module
    stock: CLIPModel | None
    exact: HFCLIPModel
    optimized: HFCLIPModel
    processor: HFCLIPProcessor
    stock_processor: CLIPProcessor

    def images(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Functions from pixels (B, 3, R, R) to embeddings (B, D)."""
        ways = {
            ORIGINAL: self.original.encode_image,
            OPEN_CLIP: self.open_clip.encode_image,
            EXACT: self.exact.encode_image,
            OPTIMIZED: self.optimized.encode_image,
        }
        if self.stock is not None:
            ways[STOCK] = lambda pixels: self.stock.get_image_features(pixels).pooler_output
        return ways

    def texts(self) -> dict[str, Callable[[list[str]], Tensor]]:
        """Functions from texts to embeddings (N, D), each as its library's documentation shows it."""
        device = self.exact.device
        tokenize = open_clip.tokenizer.SimpleTokenizer()

        def stock(texts: list[str]) -> Tensor:
            inputs = self.stock_processor(text=texts, padding=True, truncation=True, return_tensors="pt").to(device)
            return self.stock.get_text_features(**inputs).pooler_output

        ways = {
            ORIGINAL: lambda texts: self.original.encode_text(clip.tokenize(texts, truncate=True).to(device)),
            OPEN_CLIP: lambda texts: self.open_clip.encode_text(tokenize(texts).to(device)),
            EXACT: partial(embed_texts, self.exact, self.processor, normalize=False, truncation=True),
            OPTIMIZED: partial(embed_texts, self.optimized, self.processor, normalize=False, truncation=True),
        }
        if self.stock is not None:
            ways[STOCK] = stock
        return ways

    @property
    def resolution(self) -> int:
        return self.exact.config.vision_config.image_size

    def image_flops(self) -> int:
        """Floating-point operations of one image."""
        return image_flops(self.original.encode_image, self.resolution, self.exact.device)


def image_flops(encode: Callable[[Tensor], Tensor], resolution: int, device: torch.device | str = "cpu") -> int:
    """Floating-point operations of `encode` for one image."""
    pixels = torch.zeros(1, 3, resolution, resolution, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encode(pixels)
    return counter.get_total_flops()


def build(name: str, device: torch.device) -> Peers:
    """The architecture `name` with random weights, in every library."""
    original = original_model(name)
    convert_weights(original)  # open_clip rounds to the published mix of fp16 and fp32: so all start from it
    original = original.float().to(device)
    state_dict = original.state_dict()
    ours = to_repository(state_dict, Layout.hf_clip, DType.float32)

    def loaded(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        model.load_state_dict(tensors)
        return model.to(device).eval()

    stock = None
    if name.startswith(("ViT", "tiny ViT")):
        repository = to_repository(state_dict, Layout.transformers, DType.float32)
        stock = loaded(CLIPModel(repository.config), repository.tensors)
    theirs = open_clip.model.build_model_from_openai_state_dict(dict(state_dict), cast_dtype=torch.float32)
    return Peers(
        original=original,
        open_clip=theirs.float().to(device).eval(),
        stock=stock,
        exact=loaded(HFCLIPModel(ours.config), ours.tensors),
        optimized=loaded(HFCLIPModel(ours.config), ours.tensors).optimize_for_inference(),
        processor=ours.processor,
        stock_processor=make_processor(ours.config, Layout.transformers),
    )
