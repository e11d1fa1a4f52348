"""Export of a CLIP: trace the towers, convert precisions, measure the errors, write settings and manifest."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import CLIPModel
from transformers.utils import cached_file

from ..data.images import Exif, ImageRef, ImageTally, image_paths
from ..exported.manifest import Manifest
from ..exported.model import FEATURE_METHODS, PRECISIONS
from ..exported.sessions import OPEN
from ..loading import is_checkpoint, load_clip
from ..model.modeling_hf_clip import HFCLIPModel
from ..model.modeling_hf_clip_base import has_plain_weight
from ..model.processing_hf_clip import HFCLIPProcessor
from ..utils.files import check_output, new_directory
from ..utils.packages import require, require_torch
from ..zero_shot.head import load_head
from .card import write_export_card
from .classifier import CLASSIFIER, write_classifier
from .measure import NOT_EVALUATED, evaluate, graph_errors, labeled_images, tower_inputs
from .precisions import has_convolutions, write_fp16, write_openvino, write_q8
from .preprocessing import write_fused, write_preprocessing
from .targets import OPENVINO, TARGETS, Target, copy_script, write_settings
from .towers import IMMICH_TOWERS, TOWERS, example_inputs, optimized, write_onnx

OPSET = 20
CALIBRATION_IMAGES = 300
PREPROCESSING = "preprocess.onnx"
VERSIONED_PACKAGES = ("hf_clip", "torch", "transformers", "onnx", "onnxruntime", "openvino")
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}


@dataclass(frozen=True)
class Plan:
    """Arguments of an export, checked before the model is loaded."""

    runtime: str
    target: Target
    target_name: str
    towers: dict[str, type[nn.Module]]
    precisions: tuple[str, ...]


def export_clip(
    source: str | os.PathLike | nn.Module,
    output: str | os.PathLike,
    *,
    processor: Any = None,
    runtime: str = "onnx",
    parts: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32",),
    target: str = "transformers.js",
    preprocessing: bool = False,
    calibration: str | os.PathLike | None = None,
    evaluation: str | os.PathLike | None = None,
    exif: Exif = "ignore",
    classifier: str | os.PathLike | None = None,
    force: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Export a CLIP to ONNX or OpenVINO, and measure each written graph against the model.

    The output also contains the settings in the format of transformers' own CLIP, parity.json with the measured errors,
    a model card, and preprocess.mjs, the image preprocessing for JavaScript. `load_clip(output)` runs the model.

    Args:
        source: A folder or Hub id of a CLIP, or a model in float32 and evaluation mode together with its `processor`.
        output: The folder to write; it appears under this name once it is complete.
        processor: The processor of a model that is passed as an object.
        runtime: "onnx" or "openvino".
        parts: Some of "vision", "text" and "joint" (default: vision and text).
        precisions: Some of "fp32", "fp16" and "q8" (8-bit weights).
        target: The program whose file names are used: "transformers.js", "fastembed", "triton" or "immich".
        preprocessing: Also write preprocess.onnx, a graph from 8-bit RGB (H, W, 3) to the original's pixels, and for
            ONNX Runtime a second copy of each vision tower with this graph in front, `..._rgb.onnx`.
        calibration: A folder of images, required for q8 of a ResNet, whose convolutions are quantized statically.
        evaluation: A folder with one subfolder of images for each label, on which every precision is evaluated.
        exif: "apply" turns the images of both folders as their EXIF orientation says; "ignore" does as the original.
        classifier: A file that `ZeroShotClassifier.save` or `FewShotClassifier.save` wrote with this model, to add as
            classifier.onnx, from image embeddings to probabilities, for runtime "onnx".
        force: Replace an existing output.
        report: Called with a sentence at each step.

    Returns:
        The contents of parity.json: relative errors, cosines and bytes of each file, and the evaluation.

    Raises:
        ValueError: The model is optimized, quantized, adapted or not in float32, or arguments contradict each other.
        TypeError: The source is not a CLIP with both towers.
        MissingPackageError: The extra `onnx` or `openvino` is not installed.
        OSError: The output cannot be written.

    Example:
        >>> export_clip("clip-rn50", "clip-rn50-onnx", precisions=["fp32", "fp16"])
    """
    output = Path(output)
    plan = _plan(runtime, parts, precisions, target)
    if classifier is not None and runtime != "onnx":
        raise ValueError(f"a classifier is written for runtime onnx, not {runtime}: leave it off")
    check_output(output, force)
    model, processor = load_source(source, processor)
    head = None if classifier is None else load_head(classifier, model, processor)
    if "q8" in plan.precisions and "vision" in plan.towers and has_convolutions(model.config) and calibration is None:
        raise ValueError("q8 of a ResNet needs calibration images: pass calibration (--calibrate), a folder of images")
    pixels = None if calibration is None else _calibration(Path(calibration), processor, exif)
    labeled = None if evaluation is None else labeled_images(Path(evaluation))
    with new_directory(output) as directory:
        files = _write_graphs(directory, plan, model, processor, pixels, report)
        write_settings(directory, plan.target, model.config, processor)
        plan.target.extras(directory, plan.target, model.config, list(files))
        copy_script(directory)
        if preprocessing:
            _write_preprocessing(directory, plan, processor)
        manifest = _manifest(plan, model)
        manifest.write(directory)
        write_export_card(directory, output.absolute().name, manifest, files)
        result: dict[str, Any] = {"versions": _versions(), "opset": OPSET, "files": files, "evaluation": NOT_EVALUATED}
        if head is not None:
            result["classifier"] = write_classifier(head, model.logit_scale, directory, OPSET)
            report(f"{CLASSIFIER}: {len(head.columns):,} scores of {', '.join(map(str, head.columns[:3]))} ...")
        if labeled is not None:
            report(f"evaluating on {len(labeled):,} images")
            result["evaluation"] = evaluate(directory, plan.precisions, model, processor, labeled, report, exif)
        elif "q8" in plan.precisions:
            report("q8 is not evaluated: pass evaluation (--evaluate), a folder with one subfolder for each label")
        (directory / "parity.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _plan(runtime: str, parts: Sequence[str] | None, precisions: Sequence[str], target: str) -> Plan:
    _check_among("runtime", [runtime], NEEDED)
    _check_among("target", [target], TARGETS)
    _check_among("precision", precisions, PRECISIONS)
    chosen = OPENVINO if runtime == "openvino" else TARGETS[target]
    if runtime == "openvino" and target != "transformers.js":
        raise ValueError(f"target {target} has ONNX files: leave it off, or choose runtime onnx")
    parts = tuple(FEATURE_METHODS) if parts is None else parts
    _check_among("part", parts, chosen.graphs)
    require_torch("2.8", f"export to {runtime}")
    for package in NEEDED[runtime]:
        require(package, runtime, f"export to {runtime}")
    if runtime == "openvino" and "q8" in precisions:
        require("nncf", runtime, "q8 for openvino")
    towers = IMMICH_TOWERS if target == "immich" else TOWERS
    return Plan(runtime, chosen, target, {part: towers[part] for part in parts}, tuple(precisions))


def _check_among(name: str, values: Sequence[str], known: Any) -> None:
    if not values:
        raise ValueError(f"no {name} is given: choose from {', '.join(known)}")
    for value in values:
        if value not in known:
            raise ValueError(f"{name} {value!r} is unknown: choose from {', '.join(known)}")


def load_source(source: str | os.PathLike | nn.Module, processor: Any = None) -> tuple[nn.Module, Any]:
    """Load a model in float32 and its processor, or check that a model object can be exported."""
    if isinstance(source, nn.Module):
        if processor is None:
            raise ValueError("the model has no processor: pass processor too")
        _check_exportable(source)
        return source, processor
    if is_checkpoint(source):
        model, own = load_clip(source, dtype=torch.float32)
        return model, processor or own
    _check_not_packed(source)
    model = HFCLIPModel.from_pretrained(source, dtype=torch.float32).eval()
    _check_exportable(model)
    return model, processor or HFCLIPProcessor.from_pretrained(source)


def _check_not_packed(source: str | os.PathLike) -> None:
    """Raise ValueError for a folder with quantized weights, which transformers would fail to load in float32."""
    file = cached_file(source, "config.json", _raise_exceptions_for_missing_entries=False)
    if file is not None and "quantization_config" in json.loads(Path(file).read_text(encoding="utf-8")):
        raise ValueError(f"the weights in {source} are quantized: export the checkpoint, and choose precision q8")


def _check_exportable(model: nn.Module) -> None:
    """Raise ValueError or TypeError for a model whose graph would differ from its checkpoint."""
    modules = list(model.modules())
    if any(type(module).__module__.split(".")[0] == "peft" for module in modules):
        raise ValueError("the model has adapters: call merge_and_unload() and export what it returns")
    if not isinstance(model, HFCLIPModel | CLIPModel):
        raise TypeError(f"{type(model).__name__} is not a CLIP with both towers: pass an HFCLIPModel or a CLIPModel")
    if getattr(model, "optimizations", None):
        raise ValueError(
            "the model is optimized: export it before optimize_for_inference(), the runtime optimizes the graph"
        )
    layers = [module for module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
    if getattr(model, "hf_quantizer", None) is not None or not all(map(has_plain_weight, layers)):
        raise ValueError("the weights are quantized: load the model without quantization, and choose precision q8")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise ValueError(f"the model is {model.dtype}: load it with dtype=torch.float32, and choose precision fp16")
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")


def _calibration(folder: Path, processor: Any, exif: Exif) -> Any:
    paths = image_paths(folder)[:CALIBRATION_IMAGES]
    if not paths:
        raise ValueError(f"there are no images in {folder}: choose a folder of images like the ones to embed")
    tally = ImageTally()
    images = (ImageRef.of(path).open(exif, tally) for path in paths)
    pixels = [processor.image_processor(images=[image], return_tensors="np").pixel_values for image in images]
    tally.warn(exif)
    return np.concatenate(pixels)


def _write_graphs(
    directory: Path, plan: Plan, model: nn.Module, processor: Any, pixels: Any, report: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Write every part in every precision; return the measured errors of each file."""
    files: dict[str, dict[str, Any]] = {}
    static = pixels if has_convolutions(model.config) else None
    prepared, fast = tower_inputs(model, processor), optimized(model)
    with tqdm(desc="exporting", total=len(plan.towers) * len(plan.precisions), unit="file", delay=2) as bar:
        for part, kind in plan.towers.items():
            tower = kind(model)
            inputs = {name: prepared[name] for name in tower.inputs}
            with TemporaryDirectory(dir=directory, prefix=".trace.") as scratch:
                traced = Path(scratch) / Path(plan.target.file(part, "fp32")).with_suffix(".onnx").name
                write_onnx(kind(fast), example_inputs(tower, model.config), traced, OPSET)
                # fp32 comes last: it is the traced file itself, renamed, and the other precisions are made from it
                for precision in sorted(plan.precisions, key=PRECISIONS.index, reverse=True):
                    name = plan.target.file(part, precision)
                    file = directory / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    _write_precision(plan.runtime, traced, file, precision, static if part == "vision" else None)
                    measured = graph_errors(OPEN[plan.runtime](file, "cpu"), tower, inputs)
                    files[name] = {"part": part, "precision": precision, "bytes": file_bytes(file), **measured}
                    report(f"{name}: {files[name]['bytes']:,} bytes, smallest cosine {measured['cosine_min']:.6f}")
                    bar.update()
    return files


def _write_precision(runtime: str, traced: Path, file: Path, precision: str, pixels: Any) -> None:
    if runtime == "openvino":
        write_openvino(traced, file, precision, pixels)
    elif precision == "q8":
        write_q8(traced, file, pixels)
    elif precision == "fp16":
        write_fp16(traced, file)
    else:
        for written in traced.parent.glob(f"{traced.name}*"):
            written.rename(file.with_name(written.name))


def file_bytes(file: Path) -> int:
    """Count the bytes of a graph and of its weights, which may be in a second file."""
    beside = [file.with_name(f"{file.name}_data"), file.with_suffix(".bin")]
    return sum(path.stat().st_size for path in [file, *beside] if path.exists())


def _write_preprocessing(directory: Path, plan: Plan, processor: Any) -> None:
    """Write preprocess.onnx and, for ONNX Runtime, a graph from 8-bit RGB to embeddings beside each vision tower."""
    graph, onnx = directory / PREPROCESSING, plan.runtime == "onnx"
    write_preprocessing(processor.image_processor.to_dict(), graph, float64=onnx)
    for precision in plan.precisions if onnx and "vision" in plan.towers else ():
        tower = directory / plan.target.file("vision", precision)
        write_fused(graph, tower, tower.with_name(f"{tower.stem}_rgb.onnx"))


def _manifest(plan: Plan, model: nn.Module) -> Manifest:
    graphs = {part: {name: plan.target.file(part, name) for name in plan.precisions} for part in plan.towers}
    return Manifest(
        runtime=plan.runtime,
        target=plan.target_name,
        graphs=graphs,
        image_processor=plan.target.image_processor,
        tokenizer=plan.target.tokenizer,
        logit_scale=model.logit_scale.item(),
        source=model.config.name_or_path or type(model).__name__,
        config=model.config.to_dict(),
    )


def _versions() -> dict[str, str]:
    versions = {}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


__all__ = ["export_clip", "file_bytes", "load_source"]
