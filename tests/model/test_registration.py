"""Registration with transformers' Auto classes, in whatever order modules are imported."""

import builtins
import os
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
import transformers
from transformers import AutoProcessor, AutoTokenizer, AutoVideoProcessor, pipeline

from hf_clip import HFCLIPForImageClassification, HFCLIPModel, HFCLIPProcessor, HFCLIPTokenizer

RGB = Path(__file__).parents[2] / "hf_clip" / "parity" / "data" / "images" / "rgb.png"
ORDERS = [
    "import hf_clip",
    "import hf_clip; import transformers.modeling_layers",
    "import hf_clip; from transformers import Trainer, pipeline",
    "import hf_clip; from transformers import CLIPModel, CLIPProcessor",
    "from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer; import hf_clip",
    "import hf_clip.model.modeling_hf_clip",
    "import hf_clip.model.processing_hf_clip",
    "import hf_clip.model.image_processing_hf_clip",
]
CHECK = """
import sys
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
config = CONFIG_MAPPING["hf_clip"]
assert AutoModel._model_mapping[config].__name__ == "HFCLIPModel"
assert IMAGE_PROCESSOR_MAPPING[config]["pil"].__name__ == "HFCLIPImageProcessor"
assert TOKENIZER_MAPPING[config].__name__ == "HFCLIPTokenizer"
assert PROCESSOR_MAPPING[config].__name__ == "HFCLIPProcessor"
assert not any("hf_clip" in type(finder).__module__ for finder in sys.meta_path), "no hook is left"
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_imports_registers(order):
    subprocess.run([sys.executable, "-c", order + CHECK], check=True)


def test_a_lazy_import_leaves_torch_and_transformers_to_the_first_model():
    code = "import hf_clip, sys; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules); dir(hf_clip)"
    code += "; hf_clip.HFCLIPModel" + CHECK
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HF_CLIP_LAZY": "1"})


def test_the_command_leaves_them_to_the_first_model_and_nothing_to_its_children():
    code = "import os, sys, hf_clip_command; hf_clip_command.import_lazily(); import hf_clip.cli.app;"
    code += "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules); assert 'HF_CLIP_LAZY' not in os.environ"
    subprocess.run([sys.executable, "-c", code], check=True)


IN_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
import hf_clip
barrier = Barrier(8)

def load(number):
    barrier.wait()
    import transformers
    name, wanted = (("AutoModel", "HFCLIPModel"), ("AutoProcessor", "HFCLIPProcessor"))[number % 2]
    return type(getattr(transformers, name).from_pretrained(sys.argv[1])).__name__ == wanted

def load_all():
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(load, range(8)))
"""
FIVE_TIMES = """
import os
for _ in range(5):
    if not (child := os.fork()):
        load_all()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("attempts", ["load_all()", pytest.param(FIVE_TIMES, marks=pytest.mark.slow)], ids=[1, 5])
def test_eight_threads_load_at_once_in_a_fresh_process(repositories, family, attempts):
    """A race that an import hook lost in each of five runs; twelve runs, as it is one. What has no threads forks."""
    subprocess.run([sys.executable, "-c", IN_THREADS + attempts, str(repositories[family])], check=True)


# --- folders of every kind --------------------------------------------------------------------------------------------

PARTS = {"AutoTokenizer": "HFCLIPTokenizer", "AutoImageProcessor": "HFCLIPImageProcessor"}
VISION = {"ViT": "HFCLIPVisionModel", "ResNet": "HFCLIPResNetModel"}


@pytest.fixture(scope="module")
def folders(repositories, tmp_path_factory) -> dict[str, Path]:
    """Folders that the package saved, by family and kind, each with the processors that belong to it."""
    root = tmp_path_factory.mktemp("folders")
    for family, repository in repositories.items():
        processor = HFCLIPProcessor.from_pretrained(repository)
        joint = HFCLIPModel.from_pretrained(repository)
        classifier = HFCLIPForImageClassification.from_pretrained(repository, num_labels=3)
        models = {"joint": joint, "classifier": classifier, "vision": joint.vision_model, "text": joint.text_model}
        for kind, model in models.items():
            folder = root / f"{family}-{kind}"
            model.save_pretrained(folder)
            processor.save_pretrained(root / "processor")  # leaves traces in the parts
            if kind == "joint":
                processor.save_pretrained(folder)
                processor.image_processor.save_pretrained(folder)
            elif kind == "text":
                processor.tokenizer.save_pretrained(folder)
            else:
                processor.image_processor.save_pretrained(folder)
        shutil.copytree(repository, root / f"{family}-published")
    return {path.name: path for path in root.iterdir() if path.name != "processor"}


@pytest.fixture(autouse=True)
def _no_questions(monkeypatch):
    def refuse(question: str = "") -> str:
        raise AssertionError(question)

    monkeypatch.setattr(builtins, "input", refuse)


def loaded(name: str, folder: Path, where: str) -> str:
    """Name the class that an Auto class gives, for the folder or for a subfolder of its parent."""
    auto = getattr(transformers, name)
    if where == "folder":
        return type(auto.from_pretrained(folder)).__name__
    return type(auto.from_pretrained(folder.parent, subfolder=folder.name)).__name__


@pytest.mark.parametrize("where", ["folder", "subfolder"])
@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        ("joint", {"AutoModel": "HFCLIPModel", "AutoProcessor": "HFCLIPProcessor", **PARTS}),
        ("published", {"AutoModelForZeroShotImageClassification": "HFCLIPModel", "AutoProcessor": "HFCLIPProcessor"}),
        ("published", {"AutoModelForImageClassification": "HFCLIPForImageClassification", **PARTS}),
        ("classifier", {"AutoModelForImageClassification": "HFCLIPForImageClassification"}),
        ("classifier", {"AutoImageProcessor": "HFCLIPImageProcessor"}),
        ("vision", {"AutoImageProcessor": "HFCLIPImageProcessor", "AutoProcessor": "HFCLIPImageProcessor"}),
        ("vision", {"AutoModel": None}),
        ("text", {"AutoModel": "HFCLIPTextModel", "AutoTokenizer": "HFCLIPTokenizer"}),
    ],
)
def test_no_auto_class_asks_for_trust(folders, family, kind, classes, where):
    for auto, expected in classes.items():
        actual = loaded(auto, folders[f"{family}-{kind}"], where)
        assert actual == (expected or VISION["ResNet" if "ResNet" in family else "ViT"]), auto


def test_no_pipeline_asks_for_trust(folders, family):
    image = str(RGB)
    for kind in ("joint", "published"):
        classify = pipeline("zero-shot-image-classification", str(folders[f"{family}-{kind}"]))
        assert len(classify(image, candidate_labels=["a cat", "a dog"])) == 2
    assert len(pipeline("image-classification", str(folders[f"{family}-classifier"]))(image)) == 3
    assert pipeline("image-feature-extraction", str(folders[f"{family}-vision"]))(image)


@pytest.mark.skipif(
    "video_processor_classes" not in signature(AutoVideoProcessor.register).parameters,
    reason="an older transformers asks before it reads the configuration",
)
def test_no_video_processor_is_made_up(folders, family):
    for kind in ("joint", "classifier", "vision"):
        with pytest.raises(ValueError, match="video processor"):
            AutoVideoProcessor.from_pretrained(folders[f"{family}-{kind}"])


def test_a_processor_needs_both_parts(folders, family):
    """A part alone is named, with the class that loads it."""
    with pytest.raises(OSError, match="has no tokenizer: load its image processor with AutoImageProcessor"):
        AutoProcessor.from_pretrained(folders[f"{family}-classifier"])
    with pytest.raises(OSError, match="has no image processor: load its tokenizer with AutoTokenizer"):
        AutoProcessor.from_pretrained(folders[f"{family}-text"])


def test_an_image_processor_alone_names_no_code_of_a_processor(folders, family):
    for kind in ("classifier", "vision"):
        assert "processing_hf_clip.HFCLIPProcessor" not in "".join(
            file.read_text() for file in folders[f"{family}-{kind}"].glob("*.json")
        )


def test_a_folder_without_a_tokenizer_is_named(folders, family):
    with pytest.raises(OSError, match=rf"{family}-vision has no tokenizer\.json or vocab\.json: load the tokenizer of"):
        HFCLIPTokenizer.from_pretrained(folders[f"{family}-vision"])
    with pytest.raises(OSError, match=r"has no tokenizer\.json or vocab\.json"):
        AutoTokenizer.from_pretrained(folders[f"{family}-classifier"])
