"""OpenAI's CLIP as plain transformers models. Importing this package registers them with the Auto classes.

Its names are loaded when they are first used.
"""

import os
from importlib import import_module
from typing import Any

from .utils.packages import explaining, has_model_packages

# Auto classes have to know the classes before anyone asks for them. Where no model may ever be asked for, as in the
# command's help, HF_CLIP_LAZY leaves it to the first model. Without torch or transformers there are exported folders.
if not os.environ.get("HF_CLIP_LAZY") and has_model_packages():
    from . import registration as _registration  # noqa: F401

__version__ = "0.2.0"

_MODULES = {
    "data.images": ["ImageRef", "UnreadableImageError"],
    "embedding.callables": ["ImageEmbedder", "ImagePreprocessor", "TextEmbedder"],
    "embedding.identity": ["OtherModelError"],
    "embedding.images": ["embed_images", "iter_image_embeds"],
    "embedding.texts": ["embed_texts"],
    "evaluation.tasks": ["ZeroShotSet"],
    "export.engine": ["export_clip"],
    "exported.model": ["ExportedCLIP", "load_exported"],
    "exported.tensors": ["HFCLIPExportedModel"],
    "few_shot.classifier": ["FewShotClassifier"],
    "loading": ["load_clip"],
    "localization.boxes": ["find_boxes"],
    "localization.maps": ["attention_maps", "where"],
    "model.configuration_hf_clip": ["HFCLIPConfig", "HFCLIPResNetConfig", "HFCLIPTextConfig", "HFCLIPVisionConfig"],
    "model.image_processing_hf_clip": ["HFCLIPImageProcessor", "HFCLIPImageProcessorTorchvision"],
    "model.modeling_hf_clip": [
        "HFCLIPForImageClassification",
        "HFCLIPModel",
        "HFCLIPResNetModel",
        "HFCLIPTextModel",
        "HFCLIPTextModelWithProjection",
        "HFCLIPVisionModel",
        "HFCLIPVisionModelWithProjection",
    ],
    "model.processing_hf_clip": ["HFCLIPProcessor"],
    "model.tokenization_hf_clip": ["HFCLIPTokenizer"],
    "training.arguments": ["CLIPTrainingArguments"],
    "training.datasets": ["PairDataset"],
    "training.fsdp": ["prepare_fsdp"],
    "training.interpolation": ["interpolate"],
    "training.losses": ["clip_loss"],
    "training.parameters": ["lora_target_modules", "param_groups", "trainable"],
    "training.trainer": ["CLIPTrainer"],
    "search.index": ["ImageIndex"],
    "zero_shot.classifier": ["ZeroShotClassifier"],
    "zero_shot.pipeline": ["ZeroShotImageClassificationPipeline"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with explaining(f"hf_clip.{name}"):
        if _MODULE_OF[name].startswith("model."):
            import_module(".registration", __name__)
        value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
