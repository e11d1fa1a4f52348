"""CLIP's preprocessing as an ONNX graph: 8-bit RGB in, the original's pixels out.

Pillow resizes 8-bit images in fixed point, one axis after the other, and rounds to 8 bits in between. The graph
computes the same integers: each axis is a product with a matrix of weights of 22 bits, split into halves of 11 bits
whose sums float32 holds exactly. ONNX's own Resize rounds once, at the end, and differs. From Pillow 13 on, an image
that loses twice as many rows as columns has its height resized first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.packages import require

_BICUBIC = 3

# positions of the output pixels within the resized image: those of the center crop
POSITIONS = """
  {a}.margin = Sub({a}.resized, crop)
  {a}.margin64 = Cast<to=11>({a}.margin)
  {a}.half = Mul({a}.margin64, d0_5)
  {a}.rounded = Round({a}.half)
  {a}.start = Cast<to=7>({a}.rounded)
  {a}.end = Add({a}.start, crop)
  {a}.out = Range({a}.start, {a}.end, one)
"""

# distance of each input pixel from each output pixel in units of the filter, in the order of Pillow's C code, float64
DISTANCES = """
  {a}.out64 = Cast<to=11>({a}.out)
  {a}.length64 = Cast<to=11>({a}.length)
  {a}.resized64 = Cast<to=11>({a}.resized)
  {a}.scale = Div({a}.length64, {a}.resized64)
  {a}.filter_scale = Max({a}.scale, d1)
  {a}.support = Mul({a}.filter_scale, d2)
  {a}.inverse = Div(d1, {a}.filter_scale)
  {a}.out_middle = Add({a}.out64, d0_5)
  {a}.center_row = Mul({a}.out_middle, {a}.scale)
  {a}.center = Unsqueeze({a}.center_row, one_axis)
  {a}.before = Sub({a}.center, {a}.support)
  {a}.before_middle = Add({a}.before, d0_5)
  {a}.first = Floor({a}.before_middle)
  {a}.after = Add({a}.center, {a}.support)
  {a}.after_middle = Add({a}.after, d0_5)
  {a}.last = Floor({a}.after_middle)
  {a}.in = Range(zero, {a}.length, one)
  {a}.in64 = Cast<to=11>({a}.in)
  {a}.offset = Sub({a}.in64, {a}.center)
  {a}.offset_middle = Add({a}.offset, d0_5)
  {a}.signed = Mul({a}.offset_middle, {a}.inverse)
  {a}.t = Abs({a}.signed)
"""

# the same distances as quotients of integers, for runtimes that compute float64 in float32: the error is 2^-24
WHOLE_DISTANCES = """
  {a}.in = Range(zero, {a}.length, one)
  {a}.in_twice = Mul({a}.in, two)
  {a}.in_middle = Add({a}.in_twice, one)
  {a}.in_scaled = Mul({a}.in_middle, {a}.resized)
  {a}.out_twice = Mul({a}.out, two)
  {a}.out_middle = Add({a}.out_twice, one)
  {a}.out_row = Mul({a}.out_middle, {a}.length)
  {a}.out_scaled = Unsqueeze({a}.out_row, one_axis)
  {a}.apart = Sub({a}.in_scaled, {a}.out_scaled)
  {a}.numerator = Abs({a}.apart)
  {a}.longer = Max({a}.length, {a}.resized)
  {a}.denominator = Mul({a}.longer, two)
  {a}.numerator64 = Cast<to=11>({a}.numerator)
  {a}.denominator64 = Cast<to=11>({a}.denominator)
  {a}.t = Div({a}.numerator64, {a}.denominator64)
"""

BICUBIC_FILTER = """
  {a}.n1 = Mul({a}.t, d1_5)
  {a}.n2 = Sub({a}.n1, d2_5)
  {a}.n3 = Mul({a}.n2, {a}.t)
  {a}.n4 = Mul({a}.n3, {a}.t)
  {a}.near = Add({a}.n4, d1)
  {a}.f1 = Sub({a}.t, d5)
  {a}.f2 = Mul({a}.f1, {a}.t)
  {a}.f3 = Add({a}.f2, d8)
  {a}.f4 = Mul({a}.f3, {a}.t)
  {a}.f5 = Sub({a}.f4, d4)
  {a}.far = Mul({a}.f5, d_0_5)
  {a}.is_near = Less({a}.t, d1)
  {a}.is_far = Less({a}.t, d2)
  {a}.tail = Where({a}.is_far, {a}.far, d0)
  {a}.bicubic = Where({a}.is_near, {a}.near, {a}.tail)
"""

# Pillow reads whole pixels only; at the cut ends the filter is 0 up to rounding
CUT = """
  {a}.not_before = GreaterOrEqual({a}.in64, {a}.first)
  {a}.not_after = Less({a}.in64, {a}.last)
  {a}.inside = And({a}.not_before, {a}.not_after)
  {a}.cut = Where({a}.inside, {a}.bicubic, d0)
"""

# the same polynomials, factored: float32 subtracts the roots exactly
WHOLE_FILTER = """
  {a}.t_1 = Sub({a}.t, d1)
  {a}.t_2 = Sub({a}.t, d2)
  {a}.n1 = Mul({a}.t, d1_5)
  {a}.n2 = Sub({a}.n1, d1)
  {a}.n3 = Mul({a}.n2, {a}.t)
  {a}.n4 = Sub({a}.n3, d1)
  {a}.near = Mul({a}.n4, {a}.t_1)
  {a}.f1 = Mul({a}.t_2, {a}.t_2)
  {a}.f2 = Mul({a}.f1, {a}.t_1)
  {a}.far = Mul({a}.f2, d_0_5)
  {a}.is_near = Less({a}.t, d1)
  {a}.is_far = Less({a}.t, d2)
  {a}.tail = Where({a}.is_far, {a}.far, d0)
  {a}.cut = Where({a}.is_near, {a}.near, {a}.tail)
"""

# weights of the output positions: (crop, length) integers in two halves
WEIGHTS = """
  {a}.sum = ReduceSum<keepdims=1>({a}.cut, one_axis)
  {a}.weight = Div({a}.cut, {a}.sum)
  {a}.scaled = Mul({a}.weight, d_unit)
  {a}.sign = Sign({a}.scaled)
  {a}.size = Abs({a}.scaled)
  {a}.size_middle = Add({a}.size, d0_5)
  {a}.whole = Floor({a}.size_middle)
  {a}.integer = Mul({a}.sign, {a}.whole)
  {a}.quotient = Div({a}.integer, d_half)
  {a}.high64 = Floor({a}.quotient)
  {a}.multiple = Mul({a}.high64, d_half)
  {a}.low64 = Sub({a}.integer, {a}.multiple)
  {a}.high = Cast<to=1>({a}.high64)
  {a}.low = Cast<to=1>({a}.low64)
"""

# the exact integer sum of both halves, rounded to 8 bits as Pillow rounds
ROUNDED = """
  {a}.high_sum = MatMul({high})
  {a}.low_sum = MatMul({low})
  {a}.high_int = Cast<to=6>({a}.high_sum)
  {a}.low_int = Cast<to=6>({a}.low_sum)
  {a}.high_part = Mul({a}.high_int, i_half)
  {a}.total = Add({a}.high_part, {a}.low_int)
  {a}.total_middle = Add({a}.total, i_round)
  {a}.level = Div({a}.total_middle, i_unit)
  {a}.clipped = Clip({a}.level, i0, i255)
  {a}.pixels = Cast<to=1>({a}.clipped)
"""

PREPROCESSING_GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
preprocess (uint8[height, width, 3] image) => (float[1, 3, {crop}, {crop}] pixel_values)
<int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64 crop = {{{crop}}}, int64 resize = {{{resize}}},
 int64[1] one_axis = {{1}}, int64[1] zero_axis = {{0}},
 double d0 = {{0.0}}, double d0_5 = {{0.5}}, double d_0_5 = {{-0.5}}, double d1 = {{1.0}}, double d1_5 = {{1.5}},
 double d2 = {{2.0}}, double d2_5 = {{2.5}}, double d4 = {{4.0}}, double d5 = {{5.0}}, double d8 = {{8.0}},
 double d_unit = {{4194304.0}}, double d_half = {{2048.0}},
 int32 i0 = {{0}}, int32 i255 = {{255}}, int32 i_half = {{2048}},
 int32 i_round = {{2097152}}, int32 i_unit = {{4194304}},
 float f_scale = {{{scale}}}, float[3, 1, 1] mean = {{{mean}}}, float[3, 1, 1] std = {{{std}}}>
{{
  shape = Shape(image)
  height = Gather(shape, zero)
  width = Gather(shape, one)
  short = Min(height, width)
  height_scaled = Mul(height, resize)
  width_scaled = Mul(width, resize)
  new_height = Div(height_scaled, short)
  new_width = Div(width_scaled, short)
  height_cut = Sub(height, new_height)
  width_cut = Sub(width, new_width)
  width_cut_twice = Mul(width_cut, two)
  mostly_height = Greater(height_cut, width_cut_twice)
  shrinks = Greater(height_cut, zero)
  vertical_first = And(mostly_height, shrinks)
  values = Cast<to=1>(image)
  rows = Transpose<perm=[2, 0, 1]>(values)
  lines = If(vertical_first) <
    then_branch = columns () => (float[3, lines, length] turned) {{ turned = Transpose<perm=[0, 2, 1]>(rows) }},
    else_branch = as_is () => (float[3, lines, length] same) {{ same = Identity(rows) }}>
  first.length = Where(vertical_first, height, width)
  second.length = Where(vertical_first, width, height)
  first.resized = Where(vertical_first, new_height, new_width)
  second.resized = Where(vertical_first, new_width, new_height)
{body}
  back = Transpose<perm=[0, 2, 1]>(second.pixels)
  upright = Where(vertical_first, back, second.pixels)
  rescaled = Div(upright, f_scale)
  centered = Sub(rescaled, mean)
  normalized = Div(centered, std)
  pixel_values = Unsqueeze(normalized, zero_axis)
}}"""


def write_preprocessing(settings: Mapping[str, Any], path: Path, float64: bool = True) -> None:
    """Write the graph of an image processor: `image` (H, W, 3) uint8 to `pixel_values` (1, 3, S, S).

    Args:
        settings: The settings of the image processor.
        path: The file to write.
        float64: False for runtimes that compute float64 in float32; weights are then within 2^-21 of Pillow's.

    Raises:
        ValueError: The settings differ from CLIP's steps.
    """
    require("onnx", "onnx", "preprocessing in the graph")
    import onnx

    resize, crop = _sizes(settings)
    filters = DISTANCES + BICUBIC_FILTER + CUT if float64 else WHOLE_DISTANCES + WHOLE_FILTER
    weights = POSITIONS + filters + WEIGHTS
    body = weights.format(a="first") + weights.format(a="second")
    body += "".join(
        f"  first.{half}_t = Transpose<perm=[1, 0]>(first.{half})\n" for half in ("high", "low")
    ) + ROUNDED.format(a="first", high="lines, first.high_t", low="lines, first.low_t")
    body += ROUNDED.format(a="second", high="second.high, first.pixels", low="second.low, first.pixels")
    text = PREPROCESSING_GRAPH.format(
        crop=crop,
        resize=resize,
        scale=repr(1 / settings["rescale_factor"]),
        mean=", ".join(map(repr, settings["image_mean"])),
        std=", ".join(map(repr, settings["image_std"])),
        body=body,
    )
    model = onnx.parser.parse_model(text.replace("first.", "first_").replace("second.", "second_"))
    read = {name for node in model.graph.node for name in node.input}
    for constant in [constant for constant in model.graph.initializer if constant.name not in read]:
        model.graph.initializer.remove(constant)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def write_fused(preprocessing: Path, vision: Path, path: Path) -> None:
    """Join preprocessing and an ONNX vision tower to one graph: `image` (H, W, 3) uint8 to the tower's output."""
    import onnx

    first, second = onnx.load(preprocessing), onnx.load(vision)
    second.ir_version = first.ir_version
    second = onnx.compose.add_prefix(second, "vision.", rename_inputs=False, rename_outputs=False)
    (pixels,) = (value.name for value in second.graph.input)
    fused = onnx.compose.merge_models(first, second, io_map=[("pixel_values", pixels)])
    onnx.save(fused, path)


def _sizes(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return the short side after resizing and the side of the crop; raise ValueError unless the steps are CLIP's."""
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    size, crop = dict(settings["size"]), dict(settings["crop_size"])
    resize = size.get("shortest_edge")
    side = crop.get("height")
    usual = all(settings.get(step) for step in steps) and settings.get("resample") == _BICUBIC
    if not usual or resize is None or side != crop.get("width") or side is None or side > resize:
        raise ValueError(
            "the image processor does not resize (bicubic, short side), crop a square and normalize as CLIP does: "
            "export without preprocessing"
        )
    return resize, side


__all__ = ["write_fused", "write_preprocessing"]
