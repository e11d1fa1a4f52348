"""File names and settings of an exported folder, for each program that reads such folders."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, CLIPTokenizer

from ..model.configuration_hf_clip import HFCLIPConfig
from ..openai.convert import stock_config
from .text_cleaning import add_text_cleaning

SUFFIXES = {"fp32": "", "fp16": "_fp16", "q8": "_quantized"}
IMAGE_SETTINGS = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_convert_rgb"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
}


@dataclass(frozen=True)
class Target:
    """Paths of graphs and settings as a program expects them.

    Args:
        graphs: The path of each part's graph; {} is replaced with the suffix of the precision.
        image_processor: The folder of the image processor's settings.
        tokenizer: The folder of the tokenizer's files.
        extras: Writes further files of the program.
    """

    graphs: dict[str, str]
    image_processor: str = ""
    tokenizer: str = ""
    extras: Callable[[Path, "Target", Any, list[str]], None] = field(default=lambda *_: None)

    def file(self, part: str, precision: str) -> str:
        """Return the path of a part's graph in a precision."""
        return self.graphs[part].format(SUFFIXES[precision])


def write_triton(directory: Path, target: Target, config: Any, files: list[str]) -> None:
    """Write a config.pbtxt beside each model; Triton completes inputs and outputs from the graph."""
    for file in files:
        model = directory / Path(file).parts[0]
        text = f'name: "{model.name}"\nbackend: "onnxruntime"\nmax_batch_size: 64\ndynamic_batching {{ }}\n'
        (model / "config.pbtxt").write_text(text, encoding="utf-8")


def write_immich(directory: Path, target: Target, config: Any, files: list[str]) -> None:
    """Write the configuration and preprocessing that Immich reads, in open_clip's words."""
    settings = json.loads((directory / target.image_processor / "preprocessor_config.json").read_text())
    size = config.vision_config.image_size
    vision = {"image_size": size}
    text = {"context_length": config.text_config.max_position_embeddings, "vocab_size": config.text_config.vocab_size}
    model = {"embed_dim": config.projection_dim, "vision_cfg": vision, "text_cfg": text}
    preprocess = {
        "size": [size, size],
        "mode": "RGB",
        "mean": settings["image_mean"],
        "std": settings["image_std"],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    _write_json(directory / "config.json", model)
    _write_json(directory / "visual" / "preprocess_cfg.json", preprocess)


TARGETS = {
    "transformers.js": Target(
        {"vision": "onnx/vision_model{}.onnx", "text": "onnx/text_model{}.onnx", "joint": "onnx/model{}.onnx"}
    ),
    "fastembed": Target({"vision": "vision/model{}.onnx", "text": "text/model{}.onnx"}, "vision", "text"),
    "triton": Target({"vision": "vision{}/1/model.onnx", "text": "text{}/1/model.onnx"}, extras=write_triton),
    "immich": Target(
        {"vision": "visual/model{}.onnx", "text": "textual/model{}.onnx"}, "visual", "textual", write_immich
    ),
}
OPENVINO = Target({"vision": "openvino/vision_model{}.xml", "text": "openvino/text_model{}.xml"})


def write_settings(directory: Path, target: Target, config: Any, processor: Any) -> None:
    """Write configuration, image processor and tokenizer in the format of transformers' own CLIP.

    The programs know this format and not ours. A ResNet has none in transformers: of its vision tower only the image
    size is written, which is all that these programs read.
    """
    stock = stock_config(config) if isinstance(config, HFCLIPConfig) else config
    for folder in {target.image_processor, target.tokenizer}:
        (directory / folder).mkdir(parents=True, exist_ok=True)
        stock.save_pretrained(directory / folder)
    stock_image_processor(processor.image_processor).save_pretrained(directory / target.image_processor)
    _save_tokenizer(processor.tokenizer, directory / target.tokenizer)


def stock_image_processor(image_processor: Any) -> CLIPImageProcessorPil:
    """Make transformers' CLIPImageProcessorPil with the settings of ours."""
    settings = image_processor.to_dict()
    return CLIPImageProcessorPil(**{name: settings[name] for name in IMAGE_SETTINGS if name in settings})


def _save_tokenizer(tokenizer: Any, directory: Path) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    stock = CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=tokenizer.model_max_length)
    stock.save_pretrained(directory)
    add_text_cleaning(directory / "tokenizer.json")
    special = {name: str(value) for name, value in stock.special_tokens_map.items()}
    _write_json(directory / "special_tokens_map.json", special)  # fastembed and older readers want it


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def copy_script(directory: Path) -> None:
    """Copy preprocess.mjs, which computes the original's pixels in JavaScript."""
    shutil.copyfile(Path(__file__).parent / "preprocess.mjs", directory / "preprocess.mjs")


__all__ = ["OPENVINO", "TARGETS", "Target", "copy_script", "write_settings"]
