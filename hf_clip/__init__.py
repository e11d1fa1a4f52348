"""OpenAI's CLIP as plain transformers models. Importing this package registers them with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

from .configuration_hf_clip import HFCLIPConfig, HFCLIPResNetConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from .image_processing_hf_clip import HFCLIPImageProcessor, HFCLIPImageProcessorTorchvision
from .modeling_hf_clip import (
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPTextModel,
    HFCLIPTextModelWithProjection,
    HFCLIPVisionModel,
    HFCLIPVisionModelWithProjection,
)
from .modeling_hf_clip_resnet import HFCLIPResNetModel
from .pipeline import ZeroShotImageClassificationPipeline
from .processing_hf_clip import HFCLIPProcessor
from .tokenization_hf_clip import HFCLIPTokenizer
from .zero_shot import (
    OtherModelError,
    UnreadableImageError,
    ZeroShotClassifier,
    embed_images,
    embed_texts,
    iter_image_embeds,
)

for _model in (HFCLIPModel, HFCLIPTextModel, HFCLIPVisionModel, HFCLIPResNetModel):
    AutoConfig.register(_model.config_class.model_type, _model.config_class)
    AutoModel.register(_model.config_class, _model)
    # what is saved takes its code along: it loads by trust_remote_code where hf_clip is not installed
    _model.config_class.register_for_auto_class()
    _model.register_for_auto_class("AutoModel")
HFCLIPForImageClassification.register_for_auto_class("AutoModelForImageClassification")
for _part in (HFCLIPImageProcessor, HFCLIPImageProcessorTorchvision, HFCLIPTokenizer, HFCLIPProcessor):
    _part.register_for_auto_class()
AutoModelForZeroShotImageClassification.register(HFCLIPConfig, HFCLIPModel)
AutoModelForImageClassification.register(HFCLIPConfig, HFCLIPForImageClassification)
AutoImageProcessor.register(
    HFCLIPConfig, image_processor_classes={"pil": HFCLIPImageProcessor, "torchvision": HFCLIPImageProcessorTorchvision}
)
AutoTokenizer.register(HFCLIPConfig, tokenizer_class=HFCLIPTokenizer)
AutoProcessor.register(HFCLIPConfig, HFCLIPProcessor)

__all__ = [
    "HFCLIPConfig",
    "HFCLIPForImageClassification",
    "HFCLIPImageProcessor",
    "HFCLIPImageProcessorTorchvision",
    "HFCLIPModel",
    "HFCLIPProcessor",
    "HFCLIPResNetConfig",
    "HFCLIPResNetModel",
    "HFCLIPTextConfig",
    "HFCLIPTextModel",
    "HFCLIPTextModelWithProjection",
    "HFCLIPTokenizer",
    "HFCLIPVisionConfig",
    "HFCLIPVisionModel",
    "HFCLIPVisionModelWithProjection",
    "OtherModelError",
    "UnreadableImageError",
    "ZeroShotClassifier",
    "ZeroShotImageClassificationPipeline",
    "embed_images",
    "embed_texts",
    "iter_image_embeds",
]
