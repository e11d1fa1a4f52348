"""LoRA adapters, by PEFT."""

import os
from pathlib import Path

from transformers import PreTrainedModel

from ..utils.packages import require
from .parameters import lora_target_modules


def add_lora(model: PreTrainedModel, rank: int = 8, towers: str = "both", dropout: float = 0.0) -> PreTrainedModel:
    """Add LoRA adapters to the query and value projections of a model, and freeze its own weights."""
    require("peft", "peft", "LoRA")
    from peft import LoraConfig, get_peft_model

    targets = lora_target_modules(model, towers)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=targets))


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
