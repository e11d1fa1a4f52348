"""Convert a folder to the layouts of the original, open_clip, timm and ComfyUI."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.activations import ACT2FN

from ..model.configuration_hf_clip import HFCLIPConfig
from ..utils.files import check_output, new_directory, replacing
from ..utils.text import first_line
from .checkpoints import with_own_storage, write_state_dict
from .comfyui import comfyui_tensors
from .errors import CheckpointError, check_converted
from .key_mapping import to_original
from .open_clip_folder import open_clip_config
from .pixels import OPENAI_PIXELS, Pixels, folder_pixels
from .published import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, CheckpointLayout
from .timm_tower import to_timm


def to_openai(
    directory: Path,
    output: Path,
    layout: CheckpointLayout = CheckpointLayout.openai,
    force: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Write the weights of a folder in the layout of another program, with their stored dtypes.

    Args:
        directory: A converted folder, or a stock CLIP one.
        output: A .pt file for `openai`, a .safetensors file for `comfyui`, a folder for `open_clip` and `timm`.
        layout: The program that reads the output.
        force: Replace an output that exists.
        report: Called with a sentence at each step.

    Raises:
        CheckpointError: The folder holds no CLIP, or one that the program cannot express.
        OSError: The output cannot be written.
    """
    check_output(output, force, LAYOUT_SUFFIXES.get(layout, ()))
    config, tensors = read_repository(directory)
    try:
        WRITERS[layout](directory, config, tensors, output, report)
    except CheckpointError as error:
        raise type(error)(f"{directory}: {error}") from error


def _write_openai(
    directory: Path, config: HFCLIPConfig, tensors: dict[str, Tensor], output: Path, report: Callable[[str], None]
) -> None:
    state_dict = to_original(tensors, config)
    sizes = {
        "input_resolution": config.vision_config.image_size,
        "context_length": config.text_config.max_position_embeddings,
        "vocab_size": config.text_config.vocab_size,
    }
    _announce(output, state_dict, report)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_state_dict(state_dict | {key: torch.tensor(value) for key, value in sizes.items()}, output)


def _write_open_clip(
    directory: Path, config: HFCLIPConfig, tensors: dict[str, Tensor], output: Path, report: Callable[[str], None]
) -> None:
    settings = open_clip_config(config, _pixels(directory, config, report))
    state_dict = to_original(tensors, config)
    _write_folder(output, OPEN_CLIP_CONFIG, settings, OPEN_CLIP_WEIGHTS[0], state_dict, report)


def _write_timm(
    directory: Path, config: HFCLIPConfig, tensors: dict[str, Tensor], output: Path, report: Callable[[str], None]
) -> None:
    settings, tower = to_timm(config, to_original(tensors, config), _pixels(directory, config, report))
    _write_folder(output, "config.json", settings, "model.safetensors", tower, report)


def _write_comfyui(
    directory: Path, config: HFCLIPConfig, tensors: dict[str, Tensor], output: Path, report: Callable[[str], None]
) -> None:
    to_original(tensors, config)  # checks that they are this model's
    tower = comfyui_tensors(config, tensors)
    _announce(output, tower, report)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as work:
        save_file(with_own_storage(tower), work, metadata={"format": "pt"})


LAYOUT_SUFFIXES = {CheckpointLayout.comfyui: (".safetensors",)}
WRITERS = {
    CheckpointLayout.openai: _write_openai,
    CheckpointLayout.open_clip: _write_open_clip,
    CheckpointLayout.timm: _write_timm,
    CheckpointLayout.comfyui: _write_comfyui,
}


def _pixels(directory: Path, config: HFCLIPConfig, report: Callable[[str], None]) -> Pixels:
    found = folder_pixels(directory, config.vision_config.image_size)
    if found is None:
        report(f"{directory} has no image processor: assuming OpenAI's pixels ({OPENAI_PIXELS})")
    return found or OPENAI_PIXELS


def _write_folder(
    output: Path, name: str, settings: dict, weights: str, tensors: dict[str, Tensor], report: Callable[[str], None]
) -> None:
    _announce(output, tensors, report)
    with new_directory(output) as work:
        (work / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file(with_own_storage(tensors), work / weights, metadata={"format": "pt"})


def _announce(output: Path, tensors: dict[str, Tensor], report: Callable[[str], None]) -> None:
    report(f"writing {output} ({sum(tensor.nbytes for tensor in tensors.values()):,} bytes of weights)")


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
