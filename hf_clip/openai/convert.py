"""Convert an original checkpoint to a folder that `from_pretrained` reads."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.dynamic_module_utils import custom_object_save

from ..model.configuration_hf_clip import VOCAB_SIZE, HFCLIPConfig
from ..model.image_processing_hf_clip import HFCLIPImageProcessor
from ..model.modeling_hf_clip import HFCLIPModel, HFCLIPVisionModelWithProjection
from ..model.processing_hf_clip import HFCLIPProcessor
from ..model.tokenization_hf_clip import HFCLIPTokenizer
from ..utils.files import check_output, new_directory
from .checkpoints import with_own_storage
from .errors import CheckpointError
from .infer_config import infer_config
from .key_mapping import RESNET_RULES, VIT_RULES, check_shapes, from_original, to_hf
from .original import read_original
from .pixels import OPENAI_PIXELS, Pixels
from .published import DType, Layout
from .timm_tower import from_timm, is_timm
from .variants import OPENAI, Variant
from .vocabulary import load_vocabulary

# sentence-transformers reads these files; embeddings stay unnormalized, as in the original
SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
            "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}

MAX_ADDED_TOKENS = 1024  # fine-tunes append some
OTHER_VOCABULARIES = {901629: ", as MetaCLIP 2 with XLM-V's", 250002: ", as XLM-R's", 30522: ", as BERT's"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repository:
    """The contents of a converted folder, before they are written."""

    config: PreTrainedConfig
    tensors: dict[str, Tensor]
    processor: ProcessorMixin | HFCLIPImageProcessor


def convert(
    source: str | os.PathLike,
    output: Path,
    layout: Layout = Layout.hf_clip,
    dtype: DType = DType.original,
    force: bool = False,
    cache_dir: Path | None = None,
    card: Path | None = None,
    *,
    report: Callable[[str], None] = print,
    **reading: Any,
) -> None:
    """Write an original checkpoint as a folder that from_pretrained reads.

    Args:
        source: One of the nine names, which is downloaded, or a file.
        output: The folder to write; it appears only once it is complete.
        layout: The package whose classes will read the folder.
        dtype: The dtype of stored weights.
        force: Replace an output that exists.
        cache_dir: Where downloads are kept.
        card: A file to copy as the folder's README.md.
        report: Called with a sentence at each step.
        **reading: Settings that the file does not record, passed to `read_original`.

    Raises:
        CheckpointError: The source is no CLIP, or one that hf_clip cannot express.
        DownloadError: The download failed.
        OSError: The output cannot be written.
    """
    check_output(output, force)
    report(f"reading {source}")
    if is_timm(Path(source)):
        repository = tower_repository(Path(source), layout, dtype, report, **reading)
    else:
        original = read_original(source, cache_dir, report=report, **reading)
        try:
            repository = to_repository(original.state_dict, layout, dtype, original.variant, original.pixels)
        except CheckpointError as error:
            raise type(error)(f"{source}: {error}") from error
    report(f"writing {output} ({sum(tensor.nbytes for tensor in repository.tensors.values()):,} bytes of weights)")
    with new_directory(output) as directory:
        save(repository, directory)
        if card is not None:
            shutil.copyfile(card, directory / "README.md")


def load_checkpoint(
    source: str | os.PathLike,
    model_class: type[PreTrainedModel] = HFCLIPModel,
    dtype: torch.dtype | None = None,
    cache_dir: str | os.PathLike | None = None,
    **reading: Any,
) -> tuple[PreTrainedModel, HFCLIPProcessor]:
    """Load a model and its processor from one of the nine names or a checkpoint file, in evaluation mode.

    They equal those of the folder that `convert` writes, loaded by `model_class.from_pretrained(folder, dtype=dtype)`.

    Args:
        source: One of the nine names, which is downloaded, or a file.
        model_class: HFCLIPModel, or HFCLIPTextModelWithProjection, which copies the text tower's weights alone.
        dtype: As in `from_pretrained`: float32 unless given; float16 is the original's mix on a GPU.
        cache_dir: Where downloads are kept.
        **reading: Settings for `read_original`, of files that do not tell.

    Raises:
        CheckpointError: The source is no CLIP, or one that hf_clip cannot express.
        DownloadError: The download failed.
    """
    original = read_original(source, cache_dir, **{"report": logger.warning, **reading})
    repository = to_repository(original.state_dict, Layout.hf_clip, DType.original, original.variant, original.pixels)
    joint = model_class.config_class is HFCLIPConfig
    config = repository.config if joint else repository.config.text_config
    options = {} if dtype is None else {"dtype": dtype}
    model = model_class.from_pretrained(None, config=config, state_dict=repository.tensors, **options)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # the file may be memory-mapped, and deleted or replaced later
    model.config.name_or_path = os.fspath(source)
    return model, repository.processor


def to_repository(
    state_dict: dict[str, Tensor],
    layout: Layout,
    dtype: DType,
    variant: Variant = OPENAI,
    pixels: Pixels = OPENAI_PIXELS,
) -> Repository:
    """Turn a state dict under the original's keys into config, tensors and processor of `layout`."""
    config = infer_config(state_dict, variant)
    check_vocabulary(config)
    tensors = to_hf(state_dict, config)
    if dtype is not DType.original:
        tensors = cast(tensors, getattr(torch, dtype.value), config)
    # float32 is what the original computes in on a CPU; the stored mix comes back with from_pretrained(dtype=float16)
    config.dtype = torch.float32 if dtype is DType.original else getattr(torch, dtype.value)
    processor = make_processor(config, layout, pixels)
    if layout is Layout.transformers:
        if config.vision_config.is_resnet:
            raise CheckpointError("transformers has no CLIP ResNet: convert to the hf_clip layout")
        return Repository(stock_config(config), tensors, processor)
    config.architectures = [HFCLIPModel.__name__]
    return Repository(config, tensors, processor)


def tower_repository(
    folder: Path,
    layout: Layout,
    dtype: DType,
    report: Callable[[str], None],
    activation: str | None = None,
    vision_heads: int | None = None,
    **others: Any,
) -> Repository:
    """Turn an image tower that timm saved into config, tensors and image processor."""
    given = {"layout": layout is not Layout.hf_clip, "weight-dtype": dtype is not DType.original, **others}
    if unused := [name.replace("_", "-") for name, value in given.items() if value]:
        raise CheckpointError(
            f"{folder} is an image tower of timm, to which --{unused[0]} does not apply: leave it off"
        )
    tower = from_timm(folder, activation, vision_heads)
    report(f"{folder} is an image tower of timm: assuming {tower.assumed}")
    table = RESNET_RULES if tower.config.is_resnet else VIT_RULES
    with torch.device("meta"):
        model = HFCLIPVisionModelWithProjection(tower.config)
    tensors = from_original(tower.state_dict, table)
    check_shapes(tensors, model.state_dict())
    tower.config.dtype = torch.float32
    tower.config.architectures = [type(model).__name__]
    return Repository(tower.config, tensors, tower.processor)


def check_vocabulary(config: HFCLIPConfig) -> None:
    """Raise CheckpointError for a model that CLIP's tokenizer does not fit, as the number of its tokens shows."""
    tokens = config.text_config.vocab_size
    if not VOCAB_SIZE <= tokens <= VOCAB_SIZE + MAX_ADDED_TOKENS:
        name = OTHER_VOCABULARIES.get(tokens, "")
        raise CheckpointError(
            f"the model has a vocabulary of {tokens:,} tokens{name}, CLIP's has {VOCAB_SIZE:,}: its token ids would "
            "mean other words, load it with its own tokenizer"
        )


def make_processor(
    config: HFCLIPConfig, layout: Layout = Layout.hf_clip, pixels: Pixels = OPENAI_PIXELS
) -> HFCLIPProcessor | CLIPProcessor:
    """Make the processor for a model of this image size, context length and pixels, with CLIP's vocabulary."""
    image_size = config.vision_config.image_size
    vocabulary, merges = load_vocabulary()
    settings = pixels.settings(image_size)
    context = {"vocab": vocabulary, "merges": merges, "model_max_length": config.text_config.max_position_embeddings}
    if layout is Layout.transformers:
        return CLIPProcessor(CLIPImageProcessor(**settings), CLIPTokenizer(**context))
    return HFCLIPProcessor(HFCLIPImageProcessor(**settings), HFCLIPTokenizer(**context))


def stock_config(config: HFCLIPConfig) -> CLIPConfig:
    """Make the configuration for transformers' own CLIP, whose parameters have the same names as a ViT's here.

    transformers has no CLIP ResNet: of its vision tower only the image size is kept, which exported folders need.
    """
    vision = config.vision_config

    def fields(tower: PreTrainedConfig) -> dict:
        own = ("model_type", "hf_clip_version")
        fields = {key: value for key, value in tower.to_diff_dict().items() if key not in own}
        return fields | {"dtype": config.dtype}  # a tower loaded alone reads its own part

    return CLIPConfig(
        text_config=fields(config.text_config),
        vision_config={"image_size": vision.image_size} if vision.is_resnet else fields(vision),
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
        architectures=[CLIPModel.__name__],
        dtype=config.dtype,
    )


def cast(tensors: dict[str, Tensor], dtype: torch.dtype, config: HFCLIPConfig) -> dict[str, Tensor]:
    """Cast floating-point tensors to `dtype`; beside half precision, norms and embeddings stay float32."""
    kept = kept_in_float32(config) if dtype in (torch.float16, torch.bfloat16) else None
    return {
        key: tensor.to(torch.float32 if kept and kept.search(key) else dtype) if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
    }


def kept_in_float32(config: HFCLIPConfig) -> re.Pattern:
    names = sorted(empty_model(config)._keep_in_fp32_modules_strict)
    return re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))


def empty_model(config: HFCLIPConfig) -> HFCLIPModel:
    with torch.device("meta"):
        return HFCLIPModel(config)


def save(repository: Repository, directory: Path) -> None:
    if isinstance(repository.config, HFCLIPConfig):
        custom_object_save(empty_model(repository.config), directory, repository.config)
    repository.config.save_pretrained(directory)
    repository.processor.save_pretrained(directory)
    if isinstance(repository.config, CLIPConfig):
        # processor_config.json holds the same settings, which programs of before transformers 5 do not read
        repository.processor.image_processor.save_pretrained(directory)
    if not isinstance(repository.processor, HFCLIPImageProcessor):
        for name, content in SENTENCE_TRANSFORMERS.items():
            (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(with_own_storage(repository.tensors), directory / "model.safetensors", metadata={"format": "pt"})
