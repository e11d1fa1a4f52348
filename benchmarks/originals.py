"""The original's architectures with random weights, built by its own code."""

import warnings
from pathlib import Path

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # it imports pkg_resources
    import clip
    from clip.model import CLIP, convert_weights

TEXT = {"context_length": 77, "vocab_size": 49408}
# embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size, transformer_width, _heads, _layers
ARCHITECTURES = {
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 512, 8, 12),
    "RN101": (512, 224, (3, 4, 23, 3), 64, None, 512, 8, 12),
    "RN50x4": (640, 288, (4, 6, 10, 6), 80, None, 640, 10, 12),
    "RN50x16": (768, 384, (6, 8, 18, 8), 96, None, 768, 12, 12),
    "RN50x64": (1024, 448, (3, 15, 36, 10), 128, None, 1024, 16, 12),
    "ViT-B/32": (512, 224, 12, 768, 32, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 512, 8, 12),
    "ViT-L/14": (768, 224, 24, 1024, 14, 768, 12, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 768, 12, 12),
    "tiny ViT": (64, 32, 2, 64, 8, 64, 1, 2),
    "tiny ResNet": (64, 64, (1, 2, 1, 1), 16, None, 64, 1, 2),
}


def fresh_original_model(name: str, seed: int = 0) -> CLIP:
    """The original's architecture as it initializes itself."""
    embed_dim, resolution, layers, width, patch, *text = ARCHITECTURES[name]
    torch.manual_seed(seed)
    return CLIP(embed_dim, resolution, layers, width, patch, *TEXT.values(), *text)


def original_model(name: str, seed: int = 0) -> CLIP:
    """The same with random biases, norms and BatchNorm statistics as well, in float32."""
    model = fresh_original_model(name, seed).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.num_batches_tracked.fill_(7)
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(std=0.02)
            if isinstance(module, torch.nn.MultiheadAttention):
                module.in_proj_bias.normal_(std=0.02)
    return model


def save_archive(model: CLIP, path: Path, half_graph: bool = True) -> Path:
    """Save like the published ones: traced, fp16 by `convert_weights`, sizes in the state. Converts `model` in place.

    `half_graph=False` traces before the conversion: the same tensors in the file, without fp16 convolutions, which take
    minutes at full size on a CPU.
    """
    images, texts = inputs(model, images=1, texts=1)
    for key, value in {"input_resolution": model.visual.input_resolution, **TEXT}.items():
        if hasattr(model, key):
            delattr(model, key)
        model.register_buffer(key, torch.tensor(value))
    if half_graph:
        convert_weights(model)
    methods = {"forward": (images, texts), "encode_image": images, "encode_text": texts}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated and says so at length
        traced = torch.jit.trace_module(
            model, methods if half_graph else {"forward": (images, texts)}, check_trace=False
        )
    convert_weights(model)  # the traced module shares its parameters
    traced.save(str(path))
    return path


def inputs(model: CLIP, images: int = 2, texts: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized pixels, and token ids of several lengths in 77 columns."""
    generator = torch.Generator().manual_seed(seed)
    resolution = model.visual.input_resolution
    pixels = torch.randn(images, 3, resolution, resolution, generator=generator)
    words = ["a photo of a cat", "two dogs", "the quick brown fox jumps over the lazy dog", "one", "a diagram"]
    return pixels, clip.tokenize([words[i % len(words)] for i in range(texts)])
