"""The code that travels to Hub repositories. Importing this package registers it with transformers' Auto classes.

Nothing of transformers is imported for that: each Auto class gets its classes when its own module is imported, or at
once if it has been.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import local
from types import ModuleType

AUTO_MODULES = "transformers.models.auto."


def _register_configurations(auto: ModuleType) -> None:
    from . import configuration_hf_clip as ours

    for config in (ours.HFCLIPConfig, ours.HFCLIPTextConfig, ours.HFCLIPVisionConfig, ours.HFCLIPResNetConfig):
        auto.AutoConfig.register(config.model_type, config)


def _register_models(auto: ModuleType) -> None:
    from . import modeling_hf_clip as ours

    for model in (ours.HFCLIPModel, ours.HFCLIPTextModel, ours.HFCLIPVisionModel, ours.HFCLIPResNetModel):
        auto.AutoModel.register(model.config_class, model)
    auto.AutoModelForZeroShotImageClassification.register(ours.HFCLIPConfig, ours.HFCLIPModel)
    auto.AutoModelForImageClassification.register(ours.HFCLIPConfig, ours.HFCLIPForImageClassification)


def _register_tokenizer(auto: ModuleType) -> None:
    from .configuration_hf_clip import HFCLIPConfig, HFCLIPTextConfig
    from .tokenization_hf_clip import HFCLIPTokenizer

    for config in (HFCLIPConfig, HFCLIPTextConfig):
        auto.AutoTokenizer.register(config, tokenizer_class=HFCLIPTokenizer)


def _register_image_processors(auto: ModuleType) -> None:
    from . import image_processing_hf_clip as ours
    from .configuration_hf_clip import HFCLIPConfig, HFCLIPResNetConfig, HFCLIPVisionConfig

    for config in (HFCLIPConfig, HFCLIPVisionConfig, HFCLIPResNetConfig):
        backends = {"pil": ours.HFCLIPImageProcessor, "torchvision": ours.HFCLIPImageProcessorTorchvision}
        auto.AutoImageProcessor.register(config, image_processor_classes=backends)
    # where no backend is asked for, AutoImageProcessor would choose torchvision
    auto.DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS.append(ours.HFCLIPImageProcessor.__name__)


def _register_video_processors(auto: ModuleType) -> None:
    from .configuration_hf_clip import HFCLIPConfig, HFCLIPResNetConfig, HFCLIPVisionConfig

    # pipelines try every kind of processor; of an image processor's remote code, AutoVideoProcessor derives the name of
    # a video processor's, and asks whether to run it, unless the configuration is known to have none
    for config in (HFCLIPConfig, HFCLIPVisionConfig, HFCLIPResNetConfig):
        auto.AutoVideoProcessor.register(config, None)


def _register_processor(auto: ModuleType) -> None:
    from .configuration_hf_clip import HFCLIPConfig
    from .processing_hf_clip import HFCLIPProcessor

    auto.AutoProcessor.register(HFCLIPConfig, HFCLIPProcessor)


class _Registrar(MetaPathFinder):
    """Run each of `registrations` once: when its Auto module is there, and no import of transformers is under way.

    In the middle of one, the modules that ours import may be half there.
    """

    def __init__(self, registrations: dict[str, Callable[[ModuleType], None]]):
        self.registrations = registrations
        self.running = local()  # how many modules of transformers and ours this thread is importing

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(("transformers.", f"{__name__}.")):
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            setattr(spec.loader, "exec_module", self._counted(spec.loader.exec_module))  # noqa: B010
        return spec

    def _counted(self, run: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def exec_module(module: ModuleType) -> None:
            count = getattr(self.running, "count", 0)
            self.running.count = count + 1
            try:
                run(module)
            finally:
                self.running.count = count
            if count == 0:
                self.register()

        return exec_module

    def register(self) -> None:
        for name in list(self.registrations):
            # a registration may have imported what completes another, which is gone then
            if name in sys.modules and (registration := self.registrations.pop(name, None)):
                registration(sys.modules[name])
        if not self.registrations and self in sys.meta_path:
            sys.meta_path.remove(self)


_registrar = _Registrar(
    {
        f"{AUTO_MODULES}configuration_auto": _register_configurations,
        f"{AUTO_MODULES}modeling_auto": _register_models,
        f"{AUTO_MODULES}tokenization_auto": _register_tokenizer,
        f"{AUTO_MODULES}image_processing_auto": _register_image_processors,
        f"{AUTO_MODULES}video_processing_auto": _register_video_processors,
        f"{AUTO_MODULES}processing_auto": _register_processor,
    }
)
sys.meta_path.insert(0, _registrar)
_registrar.register()
