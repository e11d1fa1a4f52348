"""Find the CLIP among a file's tensors, and name the kind of model in a file that has none."""

import re
from collections.abc import Callable, Set
from pathlib import Path

import torch
from torch import Tensor

from ..utils.text import listing
from .errors import CheckpointError

# the first parts of the original's keys; attn_mask is a buffer of open_clip's
ROOTS = (
    "visual",
    "transformer",
    "token_embedding",
    "positional_embedding",
    "positional_embedding_res",
    "ln_final",
    "text_projection",
    "logit_scale",
    "input_resolution",
    "context_length",
    "vocab_size",
)
# Long-CLIP adds two tables of positions: the first up to this one, the second from there on
LONG_CLIP_TABLE, LONG_CLIP_POSITIONS = "positional_embedding_res", 20
TEXT_KEY = re.compile(r"((?:.+\.)?)token_embedding\.weight")
IMAGE_KEY = re.compile(r"((?:.+\.)?)visual\.")


def _any(pattern: str) -> Callable[[Set[str]], bool]:
    return lambda keys: any(re.search(pattern, key) for key in keys)


Kind = tuple[Callable[[Set[str]], bool], str]

# models whose keys look like a CLIP's while their forward passes differ
EXTENDED: list[Kind] = [
    (
        _any(r"(^|\.)visual\.trunk\."),
        "an open_clip model whose image tower is timm's, such as ConvNeXt or MobileCLIP: load it with open_clip",
    ),
    (
        _any(r"(^|\.)visual\.(blocks|patch_embed)\."),
        "an EVA-CLIP, whose image tower has another architecture: load it with open_clip",
    ),
    (_any(r"(^|\.)text_decoder\."), "a CoCa, which has a text decoder: load it with open_clip"),
    (
        _any(r"(^|\.)logit_bias$"),
        "a SigLIP, which scores with a bias: load it with transformers' SiglipModel or open_clip",
    ),
]
# files without a CLIP: the first match names the kind of model and the tool to use
OTHER_FILES: list[Kind] = [
    (
        _any(r"^(cond_stage_model|conditioner\.embedders)\."),
        "a Stable Diffusion pipeline: convert it to a diffusers folder and load its text_encoder with HFCLIPTextModel",
    ),
    (
        lambda keys: _any(r"text_model\.encoder\.")(keys) and _any(r"vision_model\.")(keys),
        "a CLIP under the names of transformers: load its folder with HFCLIPModel.from_pretrained",
    ),
    (
        _any(r"text_model\.encoder\."),
        "a text tower alone under the names of transformers: load its folder with HFCLIPTextModel.from_pretrained",
    ),
    (
        _any(r"vision_model\."),
        "a vision tower alone under the names of transformers: load its folder with HFCLIPVisionModel.from_pretrained",
    ),
    (_any(r"(^|\.)prompt_learner\.|^ctx$"), "learned prompts without the CLIP that reads them: convert that one"),
    (
        lambda keys: _any(r"(^|\.)text\.transformer\.")(keys) and _any(r"(^|\.)visual\.")(keys),
        "an open_clip model with a text tower of its own layout: load it with open_clip",
    ),
    (
        lambda keys: _any(r"token_embedding\.weight$")(keys) and not _any(r"(^|\.)visual\.")(keys),
        "a text tower alone: give the file of the whole CLIP",
    ),
    (
        lambda keys: _any(r"(^|\.)visual\.(conv1|proj|attnpool)")(keys) and not _any(r"token_embedding")(keys),
        "a vision tower alone: give the file of the whole CLIP",
    ),
]


def find_clip(path: Path, tensors: dict[str, Tensor], prefix: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of the one CLIP among `tensors`, under the original's keys, and the keys of all others.

    A Long-CLIP's two tables of positions become one. Where no CLIP is found, all tensors come back as they are.

    Raises:
        CheckpointError: There are several and `prefix` chooses none, or the tensors are of another kind of model.
    """
    image_towers = {match[1] for key in tensors if (match := IMAGE_KEY.match(key))}
    found = [match[1] for key in tensors if (match := TEXT_KEY.fullmatch(key)) and match[1] in image_towers]
    if prefix is not None and prefix not in found:
        known = f"; those with one are {listing(sorted(map(repr, found)))}" if found else ""
        raise CheckpointError(f"{path} has no CLIP under the prefix {prefix!r}{known}")
    if len(found) > 1 and prefix is None:
        raise CheckpointError(f"{path} holds several CLIPs, under {listing(sorted(map(repr, found)))}: choose a prefix")
    for matches, kind in EXTENDED if found else EXTENDED + OTHER_FILES:
        if matches(tensors.keys()):
            raise CheckpointError(f"{path} holds {kind}")
    if not found:
        return tensors, []
    chosen = found[0] if prefix is None else prefix
    own = re.compile(rf"{re.escape(chosen)}((?:{'|'.join(ROOTS)})(?:\..*)?)")
    clip = {match[1]: tensor for key, tensor in tensors.items() if (match := own.fullmatch(key))}
    if LONG_CLIP_TABLE in clip:
        _fold_positions(path, clip)
    return clip, [key for key in tensors if not own.fullmatch(key)]


def _fold_positions(path: Path, clip: dict[str, Tensor]) -> None:
    """Make one table of Long-CLIP's two, in place; each row is added whole, so no bit changes."""
    first, second = clip.get("positional_embedding"), clip.pop(LONG_CLIP_TABLE)
    if first is None or first.shape != second.shape or first.dtype != second.dtype:
        raise CheckpointError(f"{path} holds a Long-CLIP whose two tables of positions do not fit each other")
    clip["positional_embedding"] = torch.cat([first[:LONG_CLIP_POSITIONS], second[LONG_CLIP_POSITIONS:]])


__all__ = ["find_clip"]
