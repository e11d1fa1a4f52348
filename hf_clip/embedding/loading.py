"""A CLIP and its processor, from a folder or the Hub."""

import os
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPTextModelWithProjection,
    PreTrainedModel,
)

from ..exported.manifest import is_exported
from ..model.configuration_hf_clip import check_is_folder
from ..model.modeling_hf_clip import HFCLIPTextModelWithProjection

TEXT_TOWERS = {"hf_clip": HFCLIPTextModelWithProjection, "clip": CLIPTextModelWithProjection}


def check_model(model: PreTrainedModel) -> None:
    """Raise TypeError unless images and texts are compared as CLIP does it."""
    missing = [name for name in ("get_image_features", "get_text_features", "logit_scale") if not hasattr(model, name)]
    if missing or hasattr(model, "logit_bias"):
        why = f"has no {missing[0]}" if missing else "scores with a bias"
        raise TypeError(f"{type(model).__name__} {why}: zero-shot classification here wants a CLIP with both towers")


def load_clip(
    model_id: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    optimize: bool = False,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Load a CLIP, in evaluation mode, and its processor.

    Args:
        model_id: A folder or a Hub id, or a folder that `export_clip` wrote: that gives an HFCLIPExportedModel.
        device: Where to compute. For an exported folder one that its runtime was installed for.
        dtype: What to compute in, float32 unless the folder says otherwise. Of an exported folder, float16 picks the
            fp16 files and int8 the q8 files.
        optimize: Call the model's `optimize_for_inference()`.
        trust_remote_code: Run code that comes with the repository.

    Returns:
        The model and the processor.

    Raises:
        ValueError: `optimize` is asked of a model without `optimize_for_inference`, or an exported folder is asked for
            what it lacks.

    Example:
        >>> model, processor = load_clip("clip-rn50")
    """
    check_is_folder(model_id)
    if is_exported(model_id):
        return _load_exported(model_id, device, dtype, optimize)
    _check_dtype(model_id, dtype)
    options = {} if dtype is None else {"dtype": dtype}
    model = AutoModel.from_pretrained(model_id, trust_remote_code=trust_remote_code, **options).eval()
    processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=trust_remote_code)
    if device is not None:
        model = model.to(device)
    if optimize:
        if not hasattr(model, "optimize_for_inference"):
            raise ValueError(
                f"{type(model).__name__} has no optimize_for_inference(): leave optimize off, or convert the "
                "checkpoint to HFCLIPModel"
            )
        model.optimize_for_inference()
    return model, processor


def load_text_tower(
    model_id: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Load the text tower with projection, in evaluation mode, and the tokenizer of a CLIP's folder or Hub id.

    The vision tower is not read. A model of another type than CLIP is loaded as a whole.
    """
    config = (
        None if is_exported(model_id) else AutoConfig.from_pretrained(model_id, trust_remote_code=trust_remote_code)
    )
    if config is None or config.model_type not in TEXT_TOWERS:
        return load_clip(model_id, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    _check_dtype(model_id, dtype)
    model = TEXT_TOWERS[config.model_type].from_pretrained(model_id, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=trust_remote_code)
    return model if device is None else model.to(device), tokenizer


def _check_dtype(model_id: str | os.PathLike, dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(
            f"{model_id} cannot compute in {dtype}, exported folders have 8-bit files: export it with --precision q8"
        )


def _load_exported(
    directory: str | os.PathLike, device: str | torch.device | None, dtype: torch.dtype | None, optimize: bool
) -> tuple[Any, Any]:
    from ..exported.model import load_exported

    if optimize:
        raise ValueError(f"{directory} is exported, its runtime has optimized the graph: leave optimize off")
    precisions = {None: None, torch.float32: None, torch.float16: "fp16", torch.int8: "q8"}
    if dtype not in precisions:
        raise ValueError(f"{directory} is exported and cannot compute in {dtype}: choose float16, int8, or none")
    return load_exported(directory, precisions[dtype], device)


__all__ = ["check_model", "load_clip", "load_text_tower"]
