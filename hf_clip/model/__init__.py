"""The code that travels to Hub repositories. Importing this package registers it with transformers' Auto classes.

This file stays behind: a repository's `auto_map` names the classes instead.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    AutoVideoProcessor,
)
from transformers.models.auto.image_processing_auto import DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS

from .configuration_hf_clip import HFCLIPConfig, HFCLIPResNetConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from .image_processing_hf_clip import HFCLIPImageProcessor, HFCLIPImageProcessorTorchvision
from .modeling_hf_clip import (
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPResNetModel,
    HFCLIPTextModel,
    HFCLIPVisionModel,
)
from .processing_hf_clip import HFCLIPProcessor
from .tokenization_hf_clip import HFCLIPTokenizer

for _config in (HFCLIPConfig, HFCLIPTextConfig, HFCLIPVisionConfig, HFCLIPResNetConfig):
    AutoConfig.register(_config.model_type, _config)
for _model in (HFCLIPModel, HFCLIPTextModel, HFCLIPVisionModel, HFCLIPResNetModel):
    AutoModel.register(_model.config_class, _model)
AutoModelForZeroShotImageClassification.register(HFCLIPConfig, HFCLIPModel)
AutoModelForImageClassification.register(HFCLIPConfig, HFCLIPForImageClassification)

for _config in (HFCLIPConfig, HFCLIPTextConfig):
    AutoTokenizer.register(_config, tokenizer_class=HFCLIPTokenizer)
for _config in (HFCLIPConfig, HFCLIPVisionConfig, HFCLIPResNetConfig):
    AutoImageProcessor.register(
        _config,
        image_processor_classes={"pil": HFCLIPImageProcessor, "torchvision": HFCLIPImageProcessorTorchvision},
    )
    # Pipelines try every kind of processor. From the remote code of an image processor, AutoVideoProcessor derives the
    # name of a video processor and asks whether to run it, unless the configuration is known to have none.
    AutoVideoProcessor.register(_config, None)
# where no backend is asked for, AutoImageProcessor would choose torchvision, which is close and not equal
DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS.append(HFCLIPImageProcessor.__name__)
AutoProcessor.register(HFCLIPConfig, HFCLIPProcessor)
