"""LoRA adapters, by PEFT."""

import os
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from ..utils.packages import require
from .parameters import lora_target_modules


def add_lora(
    model: PreTrainedModel,
    rank: int = 8,
    towers: str = "both",
    dropout: float = 0.0,
    alpha: float | None = None,
    targets: Sequence[str] = ("q_proj", "v_proj"),
) -> PreTrainedModel:
    """Add LoRA adapters to layers of a model, and freeze its own weights.

    Args:
        model: A CLIP of either family.
        rank: The rank of the adapters.
        towers: "both", "image" or "text".
        dropout: The share of an adapter's inputs that is dropped in training.
        alpha: The adapter is scaled by `alpha` / `rank`; by 1 unless given.
        targets: Names of layers, of LORA_LAYERS.

    Returns:
        The model in PEFT's wrapper.

    Raises:
        MissingPackageError: PEFT is not installed.
        ValueError: There is no such tower or layer.
    """
    require("peft", "peft", "LoRA")
    from peft import LoraConfig, get_peft_model

    modules = lora_target_modules(model, towers, layers=targets)
    scale = rank if alpha is None else alpha
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=modules))


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Return True if a folder holds a PEFT adapter."""
    return Path(folder, "adapter_config.json").is_file()


def merged(base: PreTrainedModel, folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Merge the adapter in a folder into its base model, in place."""
    require("peft", "peft", f"the adapter in {folder}")
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    # PEFT leaves out weights that have no place, with a warning
    tuned = PeftModel.from_pretrained(base, folder)
    places = {name: tensor.shape for name, tensor in get_peft_model_state_dict(tuned).items()}
    given = {name: tensor.shape for name, tensor in load_peft_weights(str(folder), device="cpu").items()}
    other = [name for name in places.keys() | given.keys() if places.get(name) != given.get(name)]
    if other:
        raise ValueError(
            f"{folder} is an adapter of another model, {len(other)} of its weights do not fit: give the model that it "
            "was trained on"
        )
    return tuned.merge_and_unload()


__all__ = ["add_lora", "is_adapter", "merged"]
