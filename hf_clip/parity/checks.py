"""Comparisons of a converted folder with its original; each gives one row of the report."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel

from .. import model as hf_clip_model
from .. import registration  # noqa: F401 (the Auto classes have to know ours)
from ..model.configuration_hf_clip import HFCLIPConfig
from ..model.image_processing_hf_clip import HFCLIPImageProcessor
from ..model.tokenization_hf_clip import HFCLIPTokenizer
from ..openai.errors import CheckpointError
from ..openai.key_mapping import to_original
from ..openai.pixels import Pixels
from ..openai.to_openai import read_config, read_repository
from ..utils.text import listing
from .reference import (
    CONTEXT_LENGTH,
    LOGIT_IMAGES,
    PARITY,
    Reference,
    compute,
    image_files,
    model_inputs,
    open_fixed_image,
    original_pixels,
    plain,
    tensor_digests,
    tensor_sha256,
    texts_and_ids,
)

TOLERANCE = 1e-5  # of a feature vector's norm, or of the largest logit: the effect of another order of fp32 sums
NAMED = 4  # differences listed in a detail
NOT_THE_MODEL = {"_name_or_path", "architectures", "transformers_version"}


class Verdict(str, Enum):
    passed = "passed"
    failed = "FAILED"
    skipped = "skipped"


@dataclass(frozen=True)
class Check:
    """The result of one comparison. `difference` is the largest one found, if finite; for features it is relative."""

    name: str
    verdict: Verdict
    detail: str
    difference: float | None = None


def check(name: str, problems: str, sound: str, difference: float | None = None) -> Check:
    """Make a failed check with the detail `problems`, or a passed one with `sound` if there are none."""
    finite = difference if difference is not None and math.isfinite(difference) else None
    return Check(name, Verdict.failed if problems else Verdict.passed, problems or sound, finite)


def skipped(name: str, reason: str) -> Check:
    return Check(name, Verdict.skipped, reason)


def named(differing: list[str]) -> str:
    return listing(differing, NAMED, "; ")


def is_stock(directory: Path) -> bool:
    """Return True if the folder is for transformers' own CLIPModel."""
    return json.loads((directory / "config.json").read_text()).get("model_type") == "clip"


def check_code(directory: Path) -> Check:
    """Compare the folder's .py files with those of the installed hf_clip, which the other checks use."""
    files = sorted(directory.glob("*.py"))
    if not files:
        return skipped("remote code", "the folder has no code of its own")
    package = Path(hf_clip_model.__file__).parent
    originals = {file.name: package / file.name for file in files}
    differing = [
        file.name
        for file in files
        if not originals[file.name].is_file() or file.read_bytes() != originals[file.name].read_bytes()
    ]
    problem = f"not as in the installed hf_clip: {named(differing)}; convert again" if differing else ""
    return check("remote code", problem, f"{len(files)} files are those of the installed hf_clip")


# --- configuration and tensors ----------------------------------------------------------------------------------------


def check_config(directory: Path, reference: Reference) -> Check:
    ours = plain(read_config(directory))
    for tower in (ours["text_config"], ours["vision_config"]):
        # stock folders repeat the model's dtype there, for towers that are loaded alone
        if tower.get("dtype") == ours["dtype"]:
            tower["dtype"] = reference.config["text_config"]["dtype"]
    differing = list(_differences(ours, reference.config))
    taken = f"; the file does not tell, so it is taken on trust: {reference.assumed}" if reference.assumed else ""
    return check("config", named(differing), f"every field is what the original's tensors and code say{taken}")


def _differences(ours: dict[str, Any], original: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(original.keys() & ours.keys() - NOT_THE_MODEL):  # another transformers may know other fields
        if isinstance(original[key], dict) and isinstance(ours[key], dict):
            yield from _differences(ours[key], original[key], f"{prefix}{key}.")
        elif ours[key] != original[key]:
            yield f"{prefix}{key} is {ours[key]}, the original's is {original[key]}"


def check_tensors(directory: Path, reference: Reference) -> Check:
    """Compare the stored tensors with the original's, bit by bit."""
    _, stored = read_repository(directory)
    try:
        mapped = to_original(stored, HFCLIPConfig.from_dict(reference.config))
    except CheckpointError as error:
        return check("tensors", str(error), "")
    ours, original = tensor_digests(mapped, "stored tensors"), reference.tensors
    differing = [_difference(key, ours.get(key), original.get(key)) for key in sorted(ours.keys() | original.keys())]
    differing = [difference for difference in differing if difference]
    problems = f"{len(differing)} of {len(original)} tensors differ: {named(differing)}" if differing else ""
    size = sum(tensor.nbytes for tensor in mapped.values())
    return check("tensors", problems, f"{len(original)} tensors, {size:,} bytes, are bit-identical")


def _difference(key: str, ours: str | None, original: str | None) -> str:
    if ours == original:
        return ""
    if ours is None or original is None:
        return f"{key} is {'missing' if ours is None else 'not in the original'}"
    (kind, _), (original_kind, _) = ours.rsplit(" ", 1), original.rsplit(" ", 1)
    return f"{key} has other bits" if kind == original_kind else f"{key} is {kind}, the original's {original_kind}"


# --- image processor and tokenizer ------------------------------------------------------------------------------------


def check_image_processor(directory: Path, reference: Reference) -> Check:
    """Compare pixels with digests of the original's, recorded under each Pillow whose resize differs."""
    if is_stock(directory):
        return skipped("image processor", "stock processor: other pixels for some images by design")
    processor = AutoImageProcessor.from_pretrained(directory, trust_remote_code=False)
    recorded, transform = None, partial(original_pixels, size=reference.image_size)
    if reference.pixels is None:
        recorded = json.loads((PARITY / "pixels.json").read_text()).get(str(reference.image_size))
    else:
        transform = partial(other_pixels, reference.pixels, reference.image_size)
    differing = []
    for path in image_files():
        if recorded:
            accepted = set(recorded[path.name].values())
        else:
            accepted = {tensor_sha256(transform(path))}
        if _pixels_sha256(processor, path) not in accepted:
            differing.append(path.name)
    problems = [_other_class(processor, HFCLIPImageProcessor)]
    if differing:
        problems.append(f"{len(differing)} of {len(image_files())} images have other pixels: {named(differing)}")
    how = "the original's digests" if recorded else "the original's transform (no digests for this size)"
    sound = f"pixels of {len(image_files())} images at {reference.image_size} are bit-identical to {how}"
    return check("image processor", "; ".join(filter(None, problems)), sound)


def other_pixels(settings: dict[str, Any], size: int, path: Path) -> Tensor:
    """Return pixels (3, size, size) by the transform that the original's open_clip_config.json asks for."""
    pixels = Pixels(**settings | {name: tuple(settings[name]) for name in ("mean", "std")})
    with open_fixed_image(path) as image:
        return pixels.transform(size)(image)


def _pixels_sha256(processor: Any, path: Path) -> str:
    with open_fixed_image(path) as image:
        try:
            return tensor_sha256(processor(image, return_tensors="pt")["pixel_values"][0])
        except (ValueError, TypeError, RuntimeError, OSError):  # stock cannot read every mode
            return ""


def check_tokenizer(directory: Path, reference: Reference) -> Check:
    """Compare token ids with those recorded from the original's tokenizer."""
    if is_stock(directory):
        return skipped("tokenizer", "stock tokenizer: other ids for some texts by design")
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    columns = min(reference.context_length, CONTEXT_LENGTH)
    texts, expected = zip(*texts_and_ids(columns), strict=True)
    ids = tokenizer(list(texts), truncation=True, max_length=columns)["input_ids"]
    differing = [repr(text[:40]) for text, got, want in zip(texts, ids, expected, strict=True) if got != want]
    problems = [_other_class(tokenizer, HFCLIPTokenizer)]
    if differing:
        problems.append(f"{len(differing)} of {len(texts)} texts have other ids: {named(differing)}")
    if tokenizer.model_max_length != reference.context_length:
        problems.append(
            f"model_max_length is {tokenizer.model_max_length}, the original's is {reference.context_length}"
        )
    sound = f"ids of {len(texts)} texts are the original's, 'Hello World!' -> {ids[0]} among them"
    return check("tokenizer", "; ".join(filter(None, problems)), sound)


def _other_class(part: Any, expected: type) -> str:
    return "" if isinstance(part, expected) else f"the folder names {type(part).__name__} for {expected.__name__}"


# --- features ---------------------------------------------------------------------------------------------------------


def check_outputs(model: PreTrainedModel, reference: Reference) -> list[Check]:
    """Compare features and logits of fixed inputs with those of the original's graph, fp32 on the CPU."""
    vocab_size = reference.config["text_config"]["vocab_size"]
    pixels, ids = model_inputs(reference.image_size, reference.context_length, vocab_size)
    calls = {
        "image features": lambda: model.get_image_features(pixel_values=pixels).pooler_output,
        "text features": lambda: model.get_text_features(input_ids=ids).pooler_output,
        "logits": lambda: model(input_ids=ids, pixel_values=pixels[:LOGIT_IMAGES]).logits_per_image,
    }
    ours = compute({name: calls[name] for name in reference.outputs}, "converted model")
    return [_compared(name, ours[name], reference) for name in ours]


def _compared(name: str, ours: Tensor, reference: Reference) -> Check:
    original = reference.outputs[name]
    shape = "x".join(map(str, original.shape))
    if ours.shape != original.shape:
        return check(name, f"the shape is {'x'.join(map(str, ours.shape))}, the original's {shape}", "")
    if ours.equal(original):
        return check(name, "", f"{shape} numbers are bit-identical to the original graph's", 0.0)
    scale = original.abs().max() if name == "logits" else original.norm(dim=-1, keepdim=True)
    difference = ((ours - original) / scale).abs().max().item()
    of = "the largest logit" if name == "logits" else "the feature's norm"
    sentence = f"the largest difference from the original graph is {difference:.1e} of {of}"
    within = difference <= TOLERANCE  # NaN is not
    return check(name, "" if within else f"{sentence}, over {TOLERANCE:.0e}", sentence, difference)
