"""Modules that are traced to ONNX: image tower, text tower, and both with their scores."""

import copy
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..model.inference_hf_clip import HFCLIPFastAttentionPooling
from ..model.modeling_hf_clip import HFCLIPModel
from ..model.modeling_hf_clip_resnet import HFCLIPAttentionPooling
from ..utils.packages import require

INLINE_BYTES = 2**31 - 2**24  # protobuf ends at 2 GiB; the graph itself needs some of it


class VisionTower(nn.Module):
    """The image tower of a CLIP with its projection: pixels to unnormalized embeddings."""

    inputs, outputs = {"pixel_values": {0: "batch"}}, ["image_embeds"]

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.clip.get_image_features(pixel_values=pixel_values).pooler_output


class TextTower(nn.Module):
    """The text tower of a CLIP with its projection: token ids to unnormalized embeddings."""

    inputs, outputs = {"input_ids": {0: "batch", 1: "sequence"}}, ["text_embeds"]

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.clip.get_text_features(input_ids=input_ids).pooler_output


class JointModel(nn.Module):
    """Both towers: logits and normalized embeddings, in the order of the ONNX files of stock CLIP."""

    inputs = {"input_ids": {0: "text_batch", 1: "sequence"}, "pixel_values": {0: "image_batch"}}
    outputs = ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.clip(input_ids=input_ids, pixel_values=pixel_values)
        return tuple(getattr(output, name) for name in self.outputs)


class ImmichVisionTower(VisionTower):
    """The image tower for Immich: one row, normalized, under the names that Immich reads."""

    inputs, outputs = {"image": {}}, ["embedding"]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(super().forward(image), dim=-1)


class ImmichTextTower(TextTower):
    """The text tower for Immich: one row of 32-bit ids, normalized, under the names that Immich reads."""

    inputs, outputs = {"text": {}}, ["embedding"]

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(super().forward(text.long()), dim=-1)


TOWERS: dict[str, type[nn.Module]] = {"vision": VisionTower, "text": TextTower, "joint": JointModel}
IMMICH_TOWERS: dict[str, type[nn.Module]] = {"vision": ImmichVisionTower, "text": ImmichTextTower}


def optimized(clip: nn.Module) -> nn.Module:
    """Return an optimized copy of a CLIP that shares its tensors; a stock CLIP is returned as it is.

    The graph of the copy has a matrix product in place of a ViT's patch convolution, no BatchNorm in a ResNet, and
    computes the last layers only at the pooled position.
    """
    if not isinstance(clip, HFCLIPModel):
        return clip
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in clip.parameters()}
    memo |= {id(buffer): buffer for buffer in clip.buffers()}
    made = copy.deepcopy(clip, memo).optimize_for_inference()
    for module in made.modules():
        if isinstance(module, HFCLIPFastAttentionPooling):
            module.__class__ = HFCLIPAttentionPooling  # q8 would skip the products of the fast form
    return made


def example_inputs(tower: nn.Module, config: Any) -> dict[str, torch.Tensor]:
    """Make random inputs to trace `tower` with: several rows, or one for a graph with a fixed batch of one."""
    generator = torch.Generator().manual_seed(0)
    size, vocabulary = config.vision_config.image_size, config.text_config.vocab_size
    length = config.text_config.max_position_embeddings
    single = not any(tower.inputs.values())
    # the tracer takes sizes of 1 and equal sizes for constants: every dynamic axis gets a size of its own
    pixels = torch.randn(1 if single else 2, 3, size, size, generator=generator)
    ids = torch.randint(0, vocabulary, (1, length) if single else (3, max(3, length // 2)), generator=generator)
    made = {"pixel_values": pixels, "image": pixels, "input_ids": ids, "text": ids.int()}
    return {name: made[name] for name in tower.inputs}


@torch.no_grad()
def write_onnx(tower: nn.Module, inputs: Mapping[str, torch.Tensor], path: Path, opset: int) -> None:
    """Trace `tower` and write an ONNX file; weights of 2 GiB and more go into a second file, PATH_data."""
    for package in ("onnx", "onnxscript"):
        require(package, "onnx", "export")

    # the exporter prints progress to stdout
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            tower,
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=tower.outputs,
            dynamic_shapes=tower.inputs if any(tower.inputs.values()) else None,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    graph = program.model
    for node in graph.graph:
        node.metadata_props.clear()  # stack traces, a fifth of a small file
    for value in (value for node in graph.graph for value in node.outputs):
        if value.name in tower.outputs and not value.is_graph_output():
            value.name = f"{value.name}_inner"  # the exporter names values after operators
    path.parent.mkdir(parents=True, exist_ok=True)
    save_graph(graph, path)


def save_graph(graph: Any, path: Path) -> None:
    """Write an ONNX file of a graph, all of it in one file unless its weights have 2 GiB and more."""
    import onnx_ir

    onnx_ir.external_data.load_to_model(graph)  # a graph that was read may name the file of its weights
    weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    onnx_ir.save(graph, path, external_data=outside_file(path).name if weights > INLINE_BYTES else None)


def outside_file(path: Path) -> Path:
    """Return the second file of an ONNX file, for weights that do not fit into the first."""
    return path.with_name(f"{path.name}_data")


__all__ = ["IMMICH_TOWERS", "TOWERS", "example_inputs", "optimized", "outside_file", "save_graph", "write_onnx"]
