"""transformers' common tests, of its source archive, over our classes. Run by tests/integrations/test_common.py."""

import os
import sys
import types
import unittest

import numpy as np
import torch
from PIL import Image

FOLDER = os.environ["TRANSFORMERS_TESTS"]  # holds the archive's tests as package `transformers_tests`
sys.path.insert(0, FOLDER)


def stub(name: str, **names: object) -> types.ModuleType:
    """Stand in for a module that the archive lacks."""
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(names)
    return module


for package in ("exporters", "generation", "utils"):
    stub(f"transformers_tests.{package}").__path__ = []
stub("transformers_tests.exporters.test_export", ExportTesterMixin=object)
stub("transformers_tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
stub("transformers_tests.utils.test_configuration_utils", config_common_kwargs={})
stub("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)

from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_image_processing_common import ImageProcessingTestMixin
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers_tests.test_processing_common import ProcessorTesterMixin
from transformers_tests.test_tokenization_common import TokenizerTesterMixin

import hf_clip as ours
from hf_clip.openai.vocabulary import load_vocabulary

TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
TEXT |= {"max_position_embeddings": 20, "projection_dim": 32, "bos_token_id": 97, "eos_token_id": 98}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
VIT |= {"image_size": 32, "patch_size": 8, "projection_dim": 32}
RESNET = {"width": 8, "depths": (1, 1, 1, 1), "num_attention_heads": 4, "image_size": 64, "projection_dim": 32}
BATCH = 4


class Tester:
    """Give a configuration and inputs, under the names that the common tests look for."""

    is_training = False  # towers have no loss
    batch_size, seq_length, num_channels = BATCH, 7, 3

    def __init__(self, config: ours.HFCLIPConfig, kind: str):
        self.config, self.kind = config, kind
        vision = getattr(config, "vision_config", config)
        self.num_hidden_layers = len(RESNET["depths"]) if getattr(vision, "is_resnet", False) else 2
        self.hidden_size, self.num_attention_heads = 32, 4
        if kind != "text":
            self.image_size = vision.image_size
            self.seq_length = 17 if kind != "joint" else 7

    def get_config(self):
        return self.config

    def prepare_config_and_inputs_for_common(self) -> tuple:
        torch.manual_seed(0)
        inputs = {}
        if self.kind != "vision":
            ids = ids_tensor([BATCH, self.seq_length], 96)
            ids[:, -1] = 98
            inputs["input_ids"] = ids
            inputs["attention_mask"] = torch.ones_like(ids)
        if self.kind != "text":
            inputs["pixel_values"] = floats_tensor([BATCH, 3, self.image_size, self.image_size])
        return type(self.config).from_dict(self.config.to_dict()), inputs

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class Common(ModelTesterMixin):
    """What all of our models have in common."""

    kind, make = "joint", None
    test_resize_embeddings = False  # the vocabulary is CLIP's
    pipeline_model_mapping = {}

    def setUp(self) -> None:
        config = type(self).make()
        self.model_tester = Tester(config, self.kind)
        self.config_tester = ConfigTester(
            self, config_class=type(config), has_text_modality=False, common_properties=[]
        )

    def test_config(self) -> None:
        if self.kind == "text" or type(self.model_tester.config) is not ours.HFCLIPConfig:
            self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self) -> None:
        """Images have no nn.Embedding, as in transformers' own CLIP."""
        if self.kind != "vision":
            super().test_model_get_set_embeddings()

    @unittest.skip("an EOT outside a small vocabulary is refused when the configuration is made")
    def test_model_forward_default_config_values(self) -> None: ...


class TextTowers(Common, unittest.TestCase):
    kind = "text"
    all_model_classes = (ours.HFCLIPTextModel, ours.HFCLIPTextModelWithProjection)
    make = staticmethod(lambda: ours.HFCLIPTextConfig(**TEXT))


class VisionTowers(Common, unittest.TestCase):
    kind = "vision"
    all_model_classes = (ours.HFCLIPVisionModel, ours.HFCLIPVisionModelWithProjection)
    make = staticmethod(lambda: ours.HFCLIPVisionConfig(**VIT))


FEATURE_MAPS = unittest.skip("a ResNet's hidden states are feature maps (B, C, H, W), as in transformers' ResNets")


class ResNetTowers(Common, unittest.TestCase):
    kind = "vision"
    has_attentions = False

    @FEATURE_MAPS
    def test_hidden_states_output(self) -> None: ...

    @unittest.skip("there are four stages")
    def test_num_layers_is_small(self) -> None: ...

    all_model_classes = (ours.HFCLIPResNetModel, ours.HFCLIPVisionModelWithProjection)
    make = staticmethod(lambda: ours.HFCLIPResNetConfig(**RESNET))


class JointViT(Common, unittest.TestCase):
    has_attentions = False
    _is_composite = True
    all_model_classes = (ours.HFCLIPModel,)
    make = staticmethod(lambda: ours.HFCLIPConfig(text_config=TEXT, vision_config=ours.HFCLIPVisionConfig(**VIT)))

    @unittest.skip("the towers have hidden states, not the joint output, as in transformers' own CLIP")
    def test_hidden_states_output(self) -> None: ...

    @unittest.skip("the towers have hidden states, not the joint output, as in transformers' own CLIP")
    def test_retain_grad_hidden_states_attentions(self) -> None: ...


class JointResNet(JointViT):
    @FEATURE_MAPS
    def test_get_image_features_hidden_states(self) -> None: ...

    @FEATURE_MAPS
    def test_get_image_features_output_0(self) -> None: ...

    @FEATURE_MAPS
    def test_get_image_features_output_2(self) -> None: ...

    @unittest.skip("the text tower has other layers than the ResNet")
    def test_get_text_features_hidden_states(self) -> None: ...

    @unittest.skip("there are four stages")
    def test_num_layers_is_small(self) -> None: ...

    make = staticmethod(lambda: ours.HFCLIPConfig(text_config=TEXT, vision_config=ours.HFCLIPResNetConfig(**RESNET)))


class ClassifierViT(JointViT):
    kind = "vision"
    _is_composite = False
    all_model_classes = (ours.HFCLIPForImageClassification,)


class ClassifierResNet(ClassifierViT):
    @unittest.skip("there are four stages")
    def test_num_layers_is_small(self) -> None: ...

    make = staticmethod(lambda: ours.HFCLIPConfig(text_config=TEXT, vision_config=ours.HFCLIPResNetConfig(**RESNET)))


def tokenizer() -> ours.HFCLIPTokenizer:
    return ours.HFCLIPTokenizer(*load_vocabulary())


class Processors(ProcessorTesterMixin, unittest.TestCase):
    processor_class = ours.HFCLIPProcessor
    _setup_image_processor = staticmethod(lambda: ours.HFCLIPImageProcessor())
    _setup_tokenizer = staticmethod(tokenizer)


class ImageProcessorTester:
    image_processing_classes = {
        "pil": ours.HFCLIPImageProcessor,
        "torchvision": ours.HFCLIPImageProcessorTorchvision,
    }
    batch_size, num_channels, min_resolution, max_resolution = 7, 3, 30, 400

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def prepare_image_processor_dict(self) -> dict:
        return {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}}

    def expected_output_image_shape(self, images: list) -> tuple[int, int, int]:
        return 3, 18, 18

    def prepare_image_inputs(
        self, equal_resolution: bool = False, numpify: bool = False, torchify: bool = False
    ) -> list:
        generator = np.random.default_rng(0)
        sides = [400] * 7 if equal_resolution else range(30, 100, 10)
        images = [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in sides]
        if torchify:
            return [torch.from_numpy(image).permute(2, 0, 1) for image in images]
        return images if numpify else [Image.fromarray(image) for image in images]


class ImageProcessors(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessorTester

    @unittest.skip("reads an image from the internet")
    def test_backends_equivalence(self) -> None: ...

    @unittest.skip("RGBA becomes RGB, as in the original")
    def test_call_numpy_4_channels(self) -> None: ...


class Tokenizers(TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = ours.HFCLIPTokenizer
    rust_tokenizer_class = ours.HFCLIPTokenizer
    test_tokenizer_from_extractor = False
    test_seq2seq = False  # it reads a mask that is not asked for

    @unittest.skip("77, the limit, is no multiple of 8")
    def test_padding_to_multiple_of(self) -> None: ...

    @unittest.skip("the warning about a long text is a sentence of our own")
    def test_maximum_encoding_length_single_input(self) -> None: ...

    @unittest.skip("the warning about a long text is a sentence of our own")
    def test_maximum_encoding_length_pair_input(self) -> None: ...

    @classmethod
    def setUpClass(cls) -> None:
        import tempfile

        cls.tmpdirname, cls.tokenizers_list, cls.from_pretrained_id = tempfile.mkdtemp(), [], []
        tokenizer().save_pretrained(cls.tmpdirname)
