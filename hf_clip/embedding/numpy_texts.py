"""Embed a few texts with NumPy: no torch and no transformers, whose import takes longer than a query.

The tower is a copy of a CLIP's text tower in one safetensors file. It computes what the model computes, in float32 and
up to rounding, one text at a time and without padding.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from ..model.bpe_hf_clip import BOS_TOKEN, EOS_TOKEN, WORDS_AND_SPECIAL, ChunkIds, unpack
from ..model.text_cleaning_hf_clip import clean_chunks
from ..utils.objects import check_fields, parse_object

if TYPE_CHECKING:
    import torch

TOWER, PROJECTION, LAYER_PREFIX = "text_model.", "text_projection.weight", "text_model.encoder.layers."
EMBEDDINGS = {name: f"text_model.embeddings.{name}_embedding.weight" for name in ("token", "position")}
LAYER_KEYS = {
    f"{module}.{part}"
    for module in (
        *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
        *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
    )
    for part in ("weight", "bias")
}
TOWER_SETTINGS = {
    "num_attention_heads": int, "num_hidden_layers": int, "hidden_act": str, "layer_norm_eps": float,
    "max_position_embeddings": int, "eos_token_id": int,
}  # fmt: skip


def quick_gelu(x: np.ndarray) -> np.ndarray:
    """Return x * sigmoid(1.702 * x)."""
    return x / (1 + np.exp(-1.702 * x))


def gelu(x: np.ndarray) -> np.ndarray:
    """Return x * P(X <= x) for a standard normal X."""
    erf = np.frompyfunc(math.erf, 1, 1)(x * 0.5**0.5).astype(x.dtype)
    return x * (1 + erf) / 2


NUMPY_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"quick_gelu": quick_gelu, "gelu": gelu}


class NumpyTextTower:
    """Embed texts by a CLIP's text tower that `save_text_tower` wrote.

    Args:
        path: The safetensors file.

    Raises:
        ValueError: It is not such a file.
        FileNotFoundError: There is no such file.
    """

    def __init__(self, path: str | os.PathLike):
        try:
            self._file = safe_open(path, framework="numpy")
            metadata = self._file.metadata() or {}
            settings = parse_object(metadata["settings"])
            tokenizer = Tokenizer.from_str(metadata["tokenizer"])
            ids = [tokenizer.token_to_id(token) for token in (BOS_TOKEN, EOS_TOKEN)]
        except FileNotFoundError:
            raise
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no text tower: write it again") from error
        except Exception as error:  # the class that `tokenizers` raises
            raise ValueError(f"{path} holds no vocabulary: write it again") from error
        if not _are_known(settings) or None in ids:
            raise ValueError(f"{path} is no text tower of CLIP: write it again")
        names, layers = set(self._file.keys()), settings["num_hidden_layers"]
        if layers > len(names) or names != _keys(layers):
            raise ValueError(f"{path} lacks tensors of a text tower: write it again")
        slices = {name: self._file.get_slice(name) for name in names}
        shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
        least = {"token": tokenizer.get_vocab_size(), "position": settings["max_position_embeddings"]}
        if any(shapes[name] == () or shapes[name][0] < least[table] for table, name in EMBEDDINGS.items()):
            raise ValueError(f"{path} has too few embeddings for its vocabulary or its length: write it again")
        if any(each.get_dtype() not in ("F32", "F16") for each in slices.values()) or not _fit(shapes, settings):
            raise ValueError(f"{path} has tensors that do not fit each other: write it again")
        self.settings = settings
        self._bos, self._eos = bos, eos = [number for number in ids if number is not None]
        self._ids = ChunkIds(tokenizer.model, WORDS_AND_SPECIAL, {BOS_TOKEN: bos, EOS_TOKEN: eos})

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts as unit vectors (N, projection_dim), float32.

        Raises:
            ValueError: A text has more tokens than the model reads.
        """
        return np.stack([self._embed_one(text) for text in texts])

    def _embed_one(self, text: str) -> np.ndarray:
        ids = [self._bos, *(i for chunk in clean_chunks(text) for i in unpack(self._ids[chunk])), self._eos]
        check_length(text, len(ids), self.settings["max_position_embeddings"])
        if self.settings["eos_token_id"] not in ids:
            raise ValueError("the text tower reads texts at a token that its vocabulary does not add: write it again")
        # a text is read at its first EOT, and nothing behind that reaches it
        ids = ids[: ids.index(self.settings["eos_token_id"]) + 1]
        table = self._file.get_slice(EMBEDDINGS["token"])
        tokens = np.concatenate([table[i : i + 1] for i in ids]).astype(np.float32)  # (L, C)
        x = tokens + self._tensor(EMBEDDINGS["position"])[: len(ids)]
        for number in range(self.settings["num_hidden_layers"]):
            x = self._layer(f"{LAYER_PREFIX}{number}.", x)
        embeds = self._tensor(PROJECTION) @ self._norm("text_model.final_layer_norm", x[-1])
        length = np.linalg.norm(embeds)
        if not (np.isfinite(length) and length > 0):
            raise ValueError(
                f"the text {text[:100]!r} has no finite embedding: the text tower is damaged, write it again"
            )
        return embeds / length

    def _layer(self, prefix: str, x: np.ndarray) -> np.ndarray:
        x = x + self._attend(f"{prefix}self_attn.", self._norm(f"{prefix}layer_norm1", x))
        hidden = self._linear(f"{prefix}mlp.fc1", self._norm(f"{prefix}layer_norm2", x))
        return x + self._linear(f"{prefix}mlp.fc2", NUMPY_ACTIVATIONS[self.settings["hidden_act"]](hidden))

    def _attend(self, prefix: str, x: np.ndarray) -> np.ndarray:
        heads, length = self.settings["num_attention_heads"], len(x)
        query, key, value = (
            self._linear(f"{prefix}{name}_proj", x).reshape(length, heads, -1).swapaxes(0, 1) for name in "qkv"
        )  # (L, C) -> (heads, L, C / heads)
        scores = query @ key.swapaxes(1, 2) * np.float32(query.shape[-1] ** -0.5)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)  # causal
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self._linear(f"{prefix}out_proj", (weights @ value).swapaxes(0, 1).reshape(x.shape))

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        # (out, in) @ (in, L): BLAS is several times as fast as with the few rows of x first
        return (self._tensor(f"{name}.weight") @ x.T).T + self._tensor(f"{name}.bias")

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.settings["layer_norm_eps"]))
        return x * self._tensor(f"{name}.weight") + self._tensor(f"{name}.bias")

    def _tensor(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name).astype(np.float32, copy=False)


def save_text_tower(
    state_dict: "Mapping[str, torch.Tensor]", settings: Mapping[str, Any], tokenizer: str, path: str | os.PathLike
) -> bool:
    """Write the text tower of a CLIP for `NumpyTextTower`; tensors that float16 holds without loss are stored so.

    Args:
        state_dict: The tensors of a CLIP or of its text tower with projection.
        settings: The fields of its text configuration.
        tokenizer: The contents of its tokenizer.json.
        path: The file to write.

    Returns:
        False, and nothing is written, for a tower that `NumpyTextTower` does not compute.
    """
    tensors = {name: tensor for name, tensor in state_dict.items() if name.startswith(TOWER) or name == PROJECTION}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    chosen = {name: settings.get(name) for name in TOWER_SETTINGS}
    if not _are_known(chosen) or tensors.keys() != _keys(settings["num_hidden_layers"]):
        return False
    arrays = {}
    for name, tensor in tensors.items():
        values = tensor.float().cpu().contiguous()
        half = values.half()
        arrays[name] = (half if half.float().equal(values) else values).numpy()
    save_file(arrays, Path(path), {"settings": json.dumps(chosen), "tokenizer": tokenizer})
    return True


def check_length(text: str, tokens: int, limit: int) -> None:
    """Raise ValueError for a text of more than `limit` tokens."""
    if tokens > limit:
        raise ValueError(
            f"the text {text[:100]!r} has {tokens} tokens, the model reads {limit}: shorten it, or pass truncation=True"
        )


def _are_known(settings: Mapping[str, Any]) -> bool:
    """Return True if the settings are all there, and `NumpyTextTower` computes such a tower."""
    try:
        check_fields(settings, TOWER_SETTINGS)
    except ValueError:
        return False
    counts = (settings["num_attention_heads"], settings["max_position_embeddings"], settings["layer_norm_eps"])
    return settings["num_hidden_layers"] >= 0 < min(counts) and settings["hidden_act"] in NUMPY_ACTIVATIONS


def _fit(shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> bool:
    """Return True if the tensors of a tower have shapes that fit each other and its heads."""
    if len(shapes[EMBEDDINGS["token"]]) != 2 or not shapes[PROJECTION]:
        return False
    width = shapes[EMBEDDINGS["token"]][1]
    hidden = [shapes[name][0] for name in shapes if name.endswith("mlp.fc1.weight") and len(shapes[name]) == 2]

    def expected(name: str) -> tuple[int, ...]:
        module, _, part = name.rpartition(".")
        inner = hidden[0] if hidden and "mlp" in name else width
        sizes = (inner, width) if module.endswith("fc1") else (width, inner)
        return sizes if part == "weight" and "norm" not in module else sizes[:1]

    rows = {name: (shapes[name][0], width) for name in (PROJECTION, *EMBEDDINGS.values())}
    fitting = {name: rows.get(name) or expected(name) for name in shapes}
    return dict(shapes) == fitting and width > 0 and width % settings["num_attention_heads"] == 0


def _keys(layers: int) -> set[str]:
    norm = {f"text_model.final_layer_norm.{part}" for part in ("weight", "bias")}
    in_layers = {f"{LAYER_PREFIX}{number}.{key}" for number in range(layers) for key in LAYER_KEYS}
    return {PROJECTION, *EMBEDDINGS.values(), *norm, *in_layers}


__all__ = ["NumpyTextTower", "check_length", "save_text_tower"]
