"""Record an original checkpoint: configuration, digests of its tensors, and outputs of its graph for fixed inputs."""

import base64
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from PIL import Image
from torch import Tensor

from ..model.configuration_hf_clip import VOCAB_SIZE, HFCLIPConfig
from ..openai.clip import _transform, load
from ..openai.errors import CheckpointError
from ..openai.infer_config import infer_config
from ..openai.key_mapping import BOOKKEEPING
from ..openai.original import read_original
from ..openai.pixels import OPENAI_PIXELS
from ..openai.published import published
from ..openai.torchscript import is_archive
from ..utils.files import file_sha256

PARITY = Path(__file__).parent / "data"
CONTEXT_LENGTH = 77  # the columns that texts.json was recorded with
FEATURE_IMAGES = ("rgb.png", "rgb_large.png", "rgba.png", "palette.png")
FEATURE_TEXTS = 18
LOGIT_IMAGES = 2


@dataclass(frozen=True)
class Reference:
    """The original, read from its file or from the record of an earlier run.

    `tensors` has a digest for each of the original's keys. `outputs` is empty if no graph was run, and `no_outputs`
    is the reason. `assumed` names the settings that the file does not record, taken from the folder. `pixels` has the
    fields of `Pixels` where they are not OpenAI's.
    """

    name: str
    sha256: str
    config: dict[str, Any]
    tensors: dict[str, str]
    outputs: dict[str, Tensor]
    no_outputs: str = ""
    assumed: str = ""
    pixels: dict[str, Any] | None = None

    @property
    def checkpoint(self) -> str | None:
        """Name the published checkpoint that the original is, by its hash."""
        return published(self.sha256)

    @property
    def image_size(self) -> int:
        return self.config["vision_config"]["image_size"]

    @property
    def context_length(self) -> int:
        return self.config["text_config"]["max_position_embeddings"]

    def to_json(self) -> dict[str, Any]:
        outputs = {
            name: {"shape": list(values.shape), "float32": base64.b64encode(values.numpy().tobytes()).decode()}
            for name, values in self.outputs.items()
        }
        return asdict(self) | {"outputs": outputs}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Reference":
        outputs = {
            name: torch.frombuffer(bytearray(base64.b64decode(values["float32"])), dtype=torch.float32).view(
                values["shape"]
            )
            for name, values in content["outputs"].items()
        }
        return cls(**content | {"outputs": outputs})


def read_reference(
    path: Path, name: str, trusted: bool, report: Callable[[str], None], folder: HFCLIPConfig | None = None
) -> Reference:
    """Read the original in the file `path`.

    Its graph is run, which runs code of the file, only if the file is one of the nine published or `trusted`. What any
    other file does not tell, its activation and heads, is taken from the configuration of the `folder` to verify.

    Raises:
        CheckpointError: The file is no CLIP.
    """
    report(f"reading {path}")
    sha256 = file_sha256(path)
    settings = _settings(folder) if published(sha256) is None and folder is not None else {}
    original = read_original(path, report=report, **settings)
    state_dict = original.state_dict
    try:
        config = infer_config(state_dict, original.variant)
    except CheckpointError as error:
        raise type(error)(f"{name}: {error}") from error
    config.dtype = torch.float32  # the original's on a CPU, whatever it is stored in
    weights = {key: tensor for key, tensor in state_dict.items() if key not in BOOKKEEPING}
    if not is_archive(path):
        outputs, no_outputs = {}, f"{name} is a state dict, with no graph to run"
    elif not (trusted or published(sha256)):
        outputs, no_outputs = {}, f"{name} is none of the nine published files: to run its code, pass --trust-original"
    else:
        report("running its graph")
        outputs, no_outputs = graph_outputs(path, config), f"the graph of {name} has no such method"
    tensors = tensor_digests(weights, "original tensors")
    assumed = str(original.variant) if settings else ""
    pixels = None if original.pixels == OPENAI_PIXELS else asdict(original.pixels)
    return Reference(name, sha256, plain(config), tensors, outputs, no_outputs, assumed, pixels)


def _settings(config: HFCLIPConfig) -> dict[str, Any]:
    return {
        "activation": config.text_config.hidden_act,
        "vision_heads": config.vision_config.num_attention_heads,
        "text_heads": config.text_config.num_attention_heads,
    }


def plain(config: HFCLIPConfig) -> dict[str, Any]:
    """Return every field as plain JSON values, defaults included."""
    return json.loads(config.to_json_string(use_diff=False))


# --- fixed inputs -----------------------------------------------------------------------------------------------------


def image_files() -> list[Path]:
    return sorted((PARITY / "images").iterdir())


@contextmanager
def open_fixed_image(path: Path) -> Iterator[Image.Image]:
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")  # Pillow has one for palettes with alpha
        yield image


def original_pixels(path: Path, size: int) -> Tensor:
    """Return pixels (3, size, size) by the original's transform composed from the installed torchvision and Pillow."""
    with open_fixed_image(path) as image:
        return _transform(size)(image)


def texts_and_ids(context_length: int) -> list[tuple[str, list[int]]]:
    """Return fixed texts with the original's ids, cut to `context_length` with EOT last, without padding."""
    rows = [(row["text"], row["ids"]) for row in json.loads((PARITY / "texts.json").read_text())]
    return [(text, ids if len(ids) <= context_length else [*ids[: context_length - 1], ids[-1]]) for text, ids in rows]


def model_inputs(image_size: int, context_length: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return fixed pixels (images, 3, size, size) and ids (texts, context_length), padded with 0.

    The ids keep all columns, because a traced graph accepts no other width.

    Raises CheckpointError for a model that CLIP's ids do not fit.
    """
    if vocab_size < VOCAB_SIZE:
        raise CheckpointError(
            f"the model has {vocab_size:,} tokens, the original {VOCAB_SIZE:,}: verify knows only that vocabulary"
        )
    pixels = torch.stack([original_pixels(PARITY / "images" / name, image_size) for name in FEATURE_IMAGES])
    ids = torch.zeros(FEATURE_TEXTS, context_length, dtype=torch.long)
    for row, (_, text_ids) in zip(ids, texts_and_ids(min(context_length, CONTEXT_LENGTH)), strict=False):
        row[: len(text_ids)] = torch.tensor(text_ids)
    return pixels, ids


# --- the graph --------------------------------------------------------------------------------------------------------


def graph_outputs(path: Path, config: HFCLIPConfig) -> dict[str, Tensor]:
    """Run the archive's own module on fixed inputs, in fp32 on the CPU. THIS RUNS THE CODE IN THE FILE."""
    text = config.text_config
    pixels, ids = model_inputs(config.vision_config.image_size, text.max_position_embeddings, text.vocab_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated and says so at length
        script, _ = load(path, device="cpu", jit=True)
    calls = {
        "image features": ("encode_image", lambda: script.encode_image(pixels)),
        "text features": ("encode_text", lambda: script.encode_text(ids)),
        "logits": ("forward", lambda: script(pixels[:LOGIT_IMAGES], ids)[0]),
    }
    try:
        return compute({name: call for name, (method, call) in calls.items() if hasattr(script, method)}, "its graph")
    except RuntimeError as error:
        last = str(error).strip().rpartition("\n")[2]
        raise CheckpointError(f"{path}: its graph cannot be run ({last})") from error


def compute(calls: dict[str, Callable[[], Tensor]], label: str) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: call().float() for name, call in tqdm(calls.items(), desc=label, delay=2)}


# --- digests ----------------------------------------------------------------------------------------------------------


def tensor_digests(tensors: dict[str, Tensor], label: str) -> dict[str, str]:
    """Return `dtype [shape] SHA-256` of each tensor; two are equal only if their bits are, NaNs included."""
    return {key: tensor_digest(tensor) for key, tensor in tqdm(tensors.items(), desc=label, delay=2)}


def tensor_digest(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {tensor_sha256(tensor)}"


def tensor_sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
