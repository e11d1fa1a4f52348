"""The original's parameter names and ours: one table, read in either direction.

A rule pairs one original tensor with one or more of ours. Its operation is an exact inverse pair, so that
`to_original(to_hf(state_dict))` gives back every bit. Dtypes pass through untouched.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..model.configuration_hf_clip import HFCLIPConfig
from ..model.modeling_hf_clip import HFCLIPModel
from ..utils.text import first_line, listing
from .errors import CheckpointError

T = TypeVar("T")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# sizes that the original stores as tensors; here they are in config.json
BOOKKEEPING = ("input_resolution", "context_length", "vocab_size")


class KeyMappingError(CheckpointError):
    """Raised where tensors are not those of the model: some are missing, unknown, or of another shape."""


@dataclass(frozen=True)
class Op:
    split: Callable[[Tensor], tuple[Tensor, ...]]
    join: Callable[[tuple[Tensor, ...]], Tensor]


KEEP = Op(split=lambda tensor: (tensor,), join=lambda parts: parts[0])
FLIP = Op(split=lambda tensor: (tensor.T.contiguous(),), join=lambda parts: parts[0].T.contiguous())
QKV = Op(split=lambda tensor: tensor.chunk(3), join=torch.cat)


@dataclass(frozen=True)
class Rule:
    """Correspondence of name templates. The field `{n}` matches a number, other fields a name without dots."""

    original: str
    ours: tuple[str, ...]
    op: Op = KEEP


def _rule(original: str, *ours: str, op: Op = KEEP) -> Rule:
    return Rule(original, ours, op)


def _blocks(original: str, ours: str) -> list[Rule]:
    """Map the residual attention blocks of a Transformer."""
    block, layer = f"{original}.resblocks.{{n}}", f"{ours}.encoder.layers.{{n}}"
    return [
        _rule(f"{block}.attn.in_proj_{{p}}", *(f"{layer}.self_attn.{x}_proj.{{p}}" for x in "qkv"), op=QKV),
        _rule(f"{block}.attn.out_proj.{{p}}", f"{layer}.self_attn.out_proj.{{p}}"),
        _rule(f"{block}.ln_1.{{p}}", f"{layer}.layer_norm1.{{p}}"),
        _rule(f"{block}.mlp.c_fc.{{p}}", f"{layer}.mlp.fc1.{{p}}"),
        _rule(f"{block}.mlp.c_proj.{{p}}", f"{layer}.mlp.fc2.{{p}}"),
        _rule(f"{block}.ln_2.{{p}}", f"{layer}.layer_norm2.{{p}}"),
    ]


def _stage(number: int) -> list[Rule]:
    """Map the bottlenecks of a ResNet stage, which the original counts from 1."""
    block, ours = f"visual.layer{number}.{{n}}", f"vision_model.stages.{number - 1}.{{n}}"
    return [
        *(_rule(f"{block}.conv{i}.weight", f"{ours}.conv{i}.weight") for i in (1, 2, 3)),
        *(_rule(f"{block}.bn{i}.{{p}}", f"{ours}.bn{i}.{{p}}") for i in (1, 2, 3)),
        _rule(f"{block}.downsample.0.weight", f"{ours}.shortcut.conv.weight"),
        _rule(f"{block}.downsample.1.{{p}}", f"{ours}.shortcut.bn.{{p}}"),
    ]


TEXT_RULES = [
    _rule("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    _rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    *_blocks("transformer", "text_model"),
    _rule("ln_final.{p}", "text_model.final_layer_norm.{p}"),
    _rule("text_projection", "text_projection.weight", op=FLIP),
    _rule("logit_scale", "logit_scale"),
]

VIT_RULES = [
    _rule("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    _rule("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    _rule("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    _rule("visual.ln_pre.{p}", "vision_model.pre_layrnorm.{p}"),
    *_blocks("visual.transformer", "vision_model"),
    _rule("visual.ln_post.{p}", "vision_model.post_layernorm.{p}"),
    _rule("visual.proj", "visual_projection.weight", op=FLIP),
]

RESNET_RULES = [
    *(_rule(f"visual.conv{i}.weight", f"vision_model.stem.conv{i}.weight") for i in (1, 2, 3)),
    *(_rule(f"visual.bn{i}.{{p}}", f"vision_model.stem.bn{i}.{{p}}") for i in (1, 2, 3)),
    *(rule for number in (1, 2, 3, 4) for rule in _stage(number)),
    _rule("visual.attnpool.positional_embedding", "vision_model.attention_pool.position_embedding.weight"),
    *(_rule(f"visual.attnpool.{x}_proj.{{p}}", f"vision_model.attention_pool.{x}_proj.{{p}}") for x in "qkv"),
    _rule("visual.attnpool.c_proj.{p}", "vision_model.attention_pool.out_proj.{p}"),
]


def rules(config: HFCLIPConfig) -> list[Rule]:
    return [*TEXT_RULES, *(RESNET_RULES if config.vision_config.is_resnet else VIT_RULES)]


def to_hf(state_dict: dict[str, Tensor], config: HFCLIPConfig) -> dict[str, Tensor]:
    """Rename the original's tensors to the names of `HFCLIPModel`.

    Raises KeyMappingError, in the original's names, unless they are exactly those of `config`'s model.
    """
    state_dict = {key: tensor for key, tensor in state_dict.items() if key not in BOOKKEEPING}
    expected = back_to_original(_meta_state_dict(config), rules(config))
    # some tools drop this counter of BatchNorm, which no forward pass reads
    state_dict |= {
        key: torch.tensor(0) for key in expected if key.endswith(".num_batches_tracked") and key not in state_dict
    }
    check_shapes(state_dict, expected)
    for key, tensor in state_dict.items():
        if tensor.dtype not in FLOATS and not key.endswith(".num_batches_tracked"):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise KeyMappingError(f"{key} is of {dtype}: save the weights as float32, float16 or bfloat16")
    return from_original(state_dict, rules(config))


def to_original(state_dict: dict[str, Tensor], config: HFCLIPConfig) -> dict[str, Tensor]:
    """Rename the tensors of `HFCLIPModel` to the original's names.

    Raises KeyMappingError, in our names, unless they are exactly those of `config`'s model.
    """
    check_shapes(state_dict, _meta_state_dict(config))
    return back_to_original(state_dict, rules(config))


def check_shapes(state_dict: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise KeyMappingError unless both have the same keys and shapes."""
    if problem := (
        _listing("missing", expected.keys() - state_dict.keys())
        or _listing("unknown", state_dict.keys() - expected.keys())
        or _listing(
            "of another shape",
            (
                f"{key} {tuple(state_dict[key].shape)} instead of {tuple(tensor.shape)}"
                for key, tensor in expected.items()
                if state_dict[key].shape != tensor.shape
            ),
        )
    ):
        raise KeyMappingError(f"these are not the tensors of this CLIP: {problem}")


def from_original(state_dict: dict[str, Tensor], table: Sequence[Rule]) -> dict[str, Tensor]:
    """Rename tensors as `table` says, which has one rule for each key. Raises KeyMappingError."""
    patterns = [(_pattern(rule.original), rule) for rule in table]
    mapped = {}
    for key, tensor in state_dict.items():
        fields, rule = _only_match(key, patterns)
        for name, part in zip(rule.ours, rule.op.split(tensor), strict=True):
            mapped[name.format_map(fields)] = part
    return mapped


def back_to_original(state_dict: dict[str, Tensor], table: Sequence[Rule]) -> dict[str, Tensor]:
    """Undo `from_original`. Raises KeyMappingError."""
    patterns: list[tuple[re.Pattern, Rule | None]] = [(_pattern(rule.ours[0]), rule) for rule in table]
    others = {name for rule in table for name in rule.ours[1:]}
    patterns += [(_pattern(name), None) for name in others]
    mapped = {}
    for key in state_dict:
        fields, rule = _only_match(key, patterns)
        if rule is not None:  # q, k and v are joined once, when their first part comes
            parts = tuple(state_dict[name.format_map(fields)] for name in rule.ours)
            mapped[rule.original.format_map(fields)] = rule.op.join(parts)
    return mapped


def _meta_state_dict(config: HFCLIPConfig) -> dict[str, Tensor]:
    try:
        with torch.device("meta"):
            return HFCLIPModel(config).state_dict()
    except Exception as error:  # sizes that fit each other in no model
        raise KeyMappingError(f"no model can be built from the configuration ({first_line(error)})") from error


def _pattern(template: str) -> re.Pattern:
    pattern = re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)")
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", pattern))


def _only_match(key: str, table: Sequence[tuple[re.Pattern, T]]) -> tuple[dict[str, str], T]:
    matches = [(match.groupdict(), rule) for pattern, rule in table if (match := pattern.fullmatch(key))]
    if len(matches) != 1:
        raise KeyMappingError(f"{len(matches)} rules match {key!r}: expected one")
    return matches[0]


def _listing(what: str, names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{what} {listing(names)}" if names else ""


__all__ = [
    "BOOKKEEPING",
    "FLIP",
    "KEEP",
    "RESNET_RULES",
    "VIT_RULES",
    "KeyMappingError",
    "Op",
    "Rule",
    "back_to_original",
    "check_shapes",
    "from_original",
    "rules",
    "to_hf",
    "to_original",
]
