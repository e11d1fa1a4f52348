"""From an original checkpoint to a folder that `from_pretrained` reads."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

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
    ProcessorMixin,
)
from transformers.dynamic_module_utils import custom_object_save

from hf_clip import (
    HFCLIPConfig,
    HFCLIPImageProcessor,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPResNetConfig,
    HFCLIPTokenizer,
)
from hf_clip.openai.checkpoints import CHECKPOINTS, read_checkpoint, resolve_checkpoint
from hf_clip.openai.errors import CheckpointError
from hf_clip.openai.infer_config import infer_config
from hf_clip.openai.key_mapping import to_hf
from hf_clip.openai.vocabulary import load_vocabulary

from .files import check_output, new_directory

CARDS = Path(__file__).parents[1] / "model_cards"


class Layout(str, Enum):
    """Whose classes the folder is for."""

    hf_clip = "hf_clip"
    transformers = "transformers"


class DType(str, Enum):
    """What the weights are stored in. `original` keeps each tensor's own."""

    original = "original"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@dataclass(frozen=True)
class Repository:
    """What a converted folder holds."""

    config: PreTrainedConfig
    tensors: dict[str, Tensor]
    processor: ProcessorMixin


def convert(
    source: str,
    output: Path,
    layout: Layout = Layout.hf_clip,
    dtype: DType = DType.original,
    force: bool = False,
    cache_dir: Path | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Write `source`, one of the nine names or a file, to the folder `output`.

    Raises CheckpointError for a source that is no CLIP, DownloadError, and OSError for the output.
    """
    check_output(output, force)
    checkpoint = resolve_checkpoint(source, cache_dir)
    report(f"reading {checkpoint}")
    state_dict = read_checkpoint(checkpoint)
    try:
        repository = to_repository(state_dict, layout, dtype)
    except CheckpointError as error:
        raise type(error)(f"{source}: {error}") from error
    card = CARDS / f"{CHECKPOINTS[source].repo_name}.md" if source in CHECKPOINTS else None
    report(f"writing {output} ({sum(tensor.nbytes for tensor in repository.tensors.values()):,} bytes of weights)")
    with new_directory(output) as directory:
        save(repository, directory)
        if card is not None and card.exists():
            shutil.copyfile(card, directory / "README.md")


def to_repository(state_dict: dict[str, Tensor], layout: Layout, dtype: DType) -> Repository:
    """A state dict under the original's keys as config, tensors and processor of `layout`."""
    config = infer_config(state_dict)
    tensors = to_hf(state_dict, config)
    if dtype is not DType.original:
        tensors = cast(tensors, getattr(torch, dtype.value), config)
    # float32 is what the original computes in on a CPU; the stored mix comes back with from_pretrained(dtype=float16)
    config.dtype = torch.float32 if dtype is DType.original else getattr(torch, dtype.value)
    processor = make_processor(config, layout)
    if layout is Layout.transformers:
        return Repository(stock_config(config), tensors, processor)
    config.architectures = [HFCLIPModel.__name__]
    return Repository(config, tensors, processor)


def make_processor(config: HFCLIPConfig, layout: Layout = Layout.hf_clip) -> HFCLIPProcessor | CLIPProcessor:
    """The processor for a model of this image size and context length, with CLIP's vocabulary."""
    image_size = config.vision_config.image_size
    vocabulary, merges = load_vocabulary()
    sizes = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    context = {"vocab": vocabulary, "merges": merges, "model_max_length": config.text_config.max_position_embeddings}
    if layout is Layout.transformers:
        return CLIPProcessor(CLIPImageProcessor(**sizes), CLIPTokenizer(**context))
    return HFCLIPProcessor(HFCLIPImageProcessor(**sizes), HFCLIPTokenizer(**context))


def stock_config(config: HFCLIPConfig) -> CLIPConfig:
    """The configuration for transformers' own CLIP, whose parameters have the same names as a ViT's here."""
    if config.vision_config.model_type == HFCLIPResNetConfig.model_type:
        raise CheckpointError("transformers has no CLIP ResNet: convert to the hf_clip layout")

    def fields(tower: PreTrainedConfig) -> dict:
        return {key: value for key, value in tower.to_diff_dict().items() if key != "model_type"}

    return CLIPConfig(
        text_config=fields(config.text_config),
        vision_config=fields(config.vision_config),
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
        architectures=[CLIPModel.__name__],
        dtype=config.dtype,
    )


def cast(tensors: dict[str, Tensor], dtype: torch.dtype, config: HFCLIPConfig) -> dict[str, Tensor]:
    """Floating-point tensors in `dtype`; beside a half precision, norms and embeddings stay float32 as on loading."""
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
    save_file(repository.tensors, directory / "model.safetensors", metadata={"format": "pt"})
