"""Registration of hf_clip's classes with transformers' Auto classes, once, when this module is first imported.

Repositories on the Hub do without: their `auto_map` names the classes.
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

from .model.configuration_hf_clip import HFCLIPConfig, HFCLIPResNetConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from .model.image_processing_hf_clip import HFCLIPImageProcessor, HFCLIPImageProcessorTorchvision
from .model.modeling_hf_clip import (
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPResNetModel,
    HFCLIPTextModel,
    HFCLIPVisionModel,
)
from .model.processing_hf_clip import HFCLIPProcessor
from .model.tokenization_hf_clip import HFCLIPTokenizer

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
