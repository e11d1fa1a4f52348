"""Convert a folder back to a state dict that the original's `clip.load` reads."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.activations import ACT2FN

from ..model.configuration_hf_clip import HFCLIPConfig
from ..utils.files import check_output
from ..utils.text import first_line
from .checkpoints import write_state_dict
from .errors import CheckpointError, check_converted
from .infer_config import MAX_LAYERS
from .key_mapping import to_original


def to_openai(directory: Path, output: Path, force: bool = False, report: Callable[[str], None] = print) -> None:
    """Write the folder's weights, in the dtypes they are stored in, to the file `output`.

    `directory` is a converted folder or a stock CLIP one. Raises CheckpointError, and OSError for the files.
    """
    check_output(output, force)
    config, tensors = read_repository(directory)
    try:
        state_dict = to_original(tensors, config)
    except CheckpointError as error:
        raise type(error)(f"{directory}: {error}") from error
    sizes = {
        "input_resolution": config.vision_config.image_size,
        "context_length": config.text_config.max_position_embeddings,
        "vocab_size": config.text_config.vocab_size,
    }
    report(f"writing {output} ({sum(tensor.nbytes for tensor in state_dict.values()):,} bytes of weights)")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_state_dict(state_dict | {key: torch.tensor(value) for key, value in sizes.items()}, output)


def read_repository(directory: Path) -> tuple[HFCLIPConfig, dict[str, Tensor]]:
    """Read the configuration and the stored tensors of a folder, sharded or not."""
    config = read_config(directory)
    tensors = {}
    for file in weight_files(directory):
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read as safetensors ({error})") from error
    # old stock checkpoints carry position ids as buffers
    return config, {key: tensor for key, tensor in tensors.items() if not key.endswith("position_ids")}


def read_config(directory: Path) -> HFCLIPConfig:
    """Read the configuration of a converted or a stock folder.

    Raises:
        CheckpointError: It describes no CLIP that can be built.
    """
    check_converted(directory)
    file = directory / "config.json"
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON object ({error}): convert again") from error
    if kind not in ("hf_clip", "clip"):
        raise CheckpointError(f"{file} describes a model of the type {kind!r}: hf_clip reads hf_clip and clip")
    try:
        config = HFCLIPConfig.from_pretrained(directory)
    except Exception as error:  # each check of transformers has an exception of its own
        raise CheckpointError(f"{file} does not describe a CLIP ({first_line(error)}): convert again") from error
    towers = (config.text_config, config.vision_config)
    layers = max(getattr(tower, "num_hidden_layers", 0) for tower in towers)
    if layers > MAX_LAYERS:
        raise CheckpointError(f"{file} describes {layers:,} layers: no CLIP has over {MAX_LAYERS}")
    unknown = {getattr(tower, "hidden_act", "gelu") for tower in towers} - ACT2FN.keys()
    if unknown:
        raise CheckpointError(f"{file} names an unknown activation, {unknown.pop()!r}: convert again")
    return config


def weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [directory / Path(name).name for name in sorted(set(names))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} does not list the files of weights ({error!r}): convert again") from error
    return [directory / "model.safetensors"]
