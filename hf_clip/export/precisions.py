"""Conversion of traced graphs to fp16 and to 8-bit weights, for ONNX Runtime and OpenVINO."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..utils.packages import require
from .towers import outside_file, save_graph

# these operators stay in float32: their sums and squares exceed the range of float16
FP32_OPERATORS = ["LayerNormalization", "Softmax", "ReduceMean", "Pow"]
# dynamic: one scale for each column of a weight, and one for the activations of each call
DYNAMIC = {"op_types_to_quantize": ["MatMul", "Gemm", "Gather"], "per_channel": True}
# static: ONNX Runtime has no fast dynamic convolution, so scales of activations are measured on calibration images
STATIC = {"op_types_to_quantize": ["Conv", "MatMul", "Gemm"], "per_channel": True}


def write_fp16(source: Path, target: Path) -> None:
    """Convert a graph to float16; inputs, outputs, norms and softmax stay in float32."""
    require("onnxruntime", "onnx", "fp16")
    import onnx
    import onnx_ir
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    converted = convert_float_to_float16(
        onnx.load(source), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FP32_OPERATORS]
    )
    del converted.graph.value_info[:]  # types from before
    sorted_ = onnx_ir.from_proto(converted)
    sorted_.graph.sort()  # the converter appends the casts of inputs at the end, which other readers refuse
    save_graph(sorted_, target)


def write_q8(source: Path, target: Path, pixels: np.ndarray | None) -> None:
    """Quantize weights to 8 bits; a graph with convolutions needs calibration `pixels` (N, 3, H, W)."""
    require("onnxruntime", "onnx", "q8")
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedOpsetsPass
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # 7 bits: without VNNI, two products of 8 bits do not fit the 16 that are added up
    options: dict[str, Any] = {"weight_type": QuantType.QInt8, "reduce_range": True}
    # a graph whose weights lie in a second file keeps them in one from step to step
    outside = outside_file(source).is_file()
    options["use_external_data_format"] = outside
    with TemporaryDirectory(dir=target.parent, prefix=".q8.") as scratch:
        prepared, quantized = Path(scratch, "prepared.onnx"), Path(scratch, "quantized.onnx")
        outer = {"save_as_external_data": True, "all_tensors_to_one_file": True} if outside else {}
        quant_pre_process(source, prepared, skip_symbolic_shape=True, **outer)
        if pixels is None:
            quantize_dynamic(prepared, quantized, **DYNAMIC, **options, extra_options={"MatMulConstBOnly": True})
        else:
            calibration = _Calibration(pixels)
            quantize_static(prepared, quantized, calibration, activation_type=QuantType.QUInt8, **STATIC, **options)
        graph = onnx_ir.load(quantized)
        RemoveUnusedOpsetsPass()(graph)  # ONNX Runtime declares every operator set it knows
        save_graph(graph, target)


def write_openvino(source: Path, target: Path, precision: str, pixels: np.ndarray | None) -> None:
    """Convert an ONNX graph to OpenVINO in a precision; q8 with convolutions needs calibration `pixels`."""
    require("openvino", "openvino", "export to openvino")
    import openvino

    model = openvino.convert_model(source)
    if precision == "q8":
        model = _openvino_q8(model, pixels)
    openvino.save_model(model, target, compress_to_fp16=precision == "fp16")


def _openvino_q8(model: Any, pixels: np.ndarray | None) -> Any:
    """Quantize weights to 8 bits with one scale for each row; with `pixels` also the activations."""
    require("nncf", "openvino", "q8 for openvino")
    import nncf

    with redirect_stdout(StringIO()), _quiet("nncf"):  # it draws progress bars
        if pixels is None:
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        # 7 bits, as for ONNX Runtime
        advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
        images = nncf.Dataset(list(pixels), lambda row: {"pixel_values": row[None]})
        return nncf.quantize(
            model,
            images,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(pixels),
            fast_bias_correction=False,
            advanced_parameters=advanced,
        )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Raise the log level of a package to warnings."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def has_convolutions(config: Any) -> bool:
    """Return True if the vision tower's weights are mostly those of convolutions."""
    return getattr(config.vision_config, "is_resnet", False)


class _Calibration:
    """The calibration images as ONNX Runtime reads them, one at a time."""

    def __init__(self, pixels: np.ndarray):
        self._rows: Iterator[np.ndarray] = iter(pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else {"pixel_values": row[None]}

    def __iter__(self) -> "_Calibration":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        row = self.get_next()
        if row is None:
            raise StopIteration
        return row


__all__ = ["has_convolutions", "write_fp16", "write_openvino", "write_q8"]
