"""Where the programs that read an exported folder look for its files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPTokenizer

from ..model.configuration_hf_clip import HFCLIPConfig

SUFFIXES = {"fp32": "", "fp16": "_fp16", "q8": "_quantized"}
IMAGE_SETTINGS = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_convert_rgb"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
}


@dataclass(frozen=True)
class Layout:
    """Say where graphs and settings go; `{}` stands for a precision's suffix."""

    graphs: dict[str, str]
    image_processor: str = ""
    tokenizer: str = ""
    extras: Callable[[Path, "Layout", Any, list[str]], None] = field(default=lambda *_: None)

    def file(self, part: str, precision: str) -> str:
        """Name the graph of a part in a precision."""
        return self.graphs[part].format(SUFFIXES[precision])


def write_triton(directory: Path, layout: Layout, config: Any, files: list[str]) -> None:
    """Write a config.pbtxt beside each model; Triton completes inputs and outputs from the graph."""
    for file in files:
        model = directory / Path(file).parts[0]
        text = f'name: "{model.name}"\nbackend: "onnxruntime"\nmax_batch_size: 64\ndynamic_batching {{ }}\n'
        (model / "config.pbtxt").write_text(text, encoding="utf-8")


def write_immich(directory: Path, layout: Layout, config: Any, files: list[str]) -> None:
    """Write the configuration and preprocessing that Immich reads, in open_clip's words."""
    settings = json.loads((directory / layout.image_processor / "preprocessor_config.json").read_text())
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


LAYOUTS = {
    "transformers.js": Layout(
        {"vision": "onnx/vision_model{}.onnx", "text": "onnx/text_model{}.onnx", "joint": "onnx/model{}.onnx"}
    ),
    "fastembed": Layout({"vision": "vision/model{}.onnx", "text": "text/model{}.onnx"}, "vision", "text"),
    "triton": Layout({"vision": "vision{}/1/model.onnx", "text": "text{}/1/model.onnx"}, extras=write_triton),
    "immich": Layout(
        {"vision": "visual/model{}.onnx", "text": "textual/model{}.onnx"}, "visual", "textual", write_immich
    ),
}
OPENVINO = Layout({"vision": "openvino/vision_model{}.xml", "text": "openvino/text_model{}.xml"})


def write_settings(directory: Path, layout: Layout, config: Any, processor: Any) -> None:
    """Write configuration, image processor and tokenizer under the names of transformers' own CLIP.

    Every program reads those, and few know another name. The weights of a ResNet's configuration are read by none.
    """
    for folder in {layout.image_processor, layout.tokenizer}:
        (directory / folder).mkdir(parents=True, exist_ok=True)
        stock_config(config).save_pretrained(directory / folder)
    stock_image_processor(processor.image_processor).save_pretrained(directory / layout.image_processor)
    _save_tokenizer(processor.tokenizer, directory / layout.tokenizer)


def stock_config(config: Any) -> CLIPConfig:
    """Return the configuration as transformers' CLIP has it; of a ResNet it has sizes alone."""
    if not isinstance(config, HFCLIPConfig):
        return config

    def fields(tower: Any) -> dict[str, Any]:
        return {key: value for key, value in tower.to_diff_dict().items() if key != "model_type"}

    resnet = config.vision_config.is_resnet
    vision = {"image_size": config.vision_config.image_size} if resnet else fields(config.vision_config)
    return CLIPConfig(
        text_config=fields(config.text_config),
        vision_config=vision,
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
        architectures=["CLIPModel"],
    )


def stock_image_processor(image_processor: Any) -> CLIPImageProcessorPil:
    """Return the image processor's settings under the stock class."""
    settings = image_processor.to_dict()
    return CLIPImageProcessorPil(**{name: settings[name] for name in IMAGE_SETTINGS if name in settings})


def _save_tokenizer(tokenizer: Any, directory: Path) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    stock = CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=tokenizer.model_max_length)
    stock.save_pretrained(directory)
    special = {name: str(value) for name, value in stock.special_tokens_map.items()}
    _write_json(directory / "special_tokens_map.json", special)  # fastembed and older readers


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def copy_script(directory: Path) -> None:
    """Copy preprocess.mjs, which gives JavaScript the original's pixels."""
    shutil.copyfile(Path(__file__).parent / "preprocess.mjs", directory / "preprocess.mjs")


__all__ = ["LAYOUTS", "OPENVINO", "Layout", "copy_script", "write_settings"]
