"""References to weights in the place of weights, on messages that are written out by hand."""

import pytest

from hf_clip.exported.mapped_onnx import without_weights

SMALL, LARGE = b"\x4a\x04\x00\x01\x02\x03", bytes(range(256)) * 8  # raw_data of 4 bytes; 2,048 bytes
NAMED = b"\x42\x01w"  # name
FIRST, LAST = b"\x08\x0a", b"\x42\x02\x10\x14"  # ir_version before the graph, opset_import after it
NODE = b"\x0a\x03\x22\x01x"


def message(number: int, content: bytes) -> bytes:
    """Encode a field of bytes, of fewer than 16,384."""
    length = len(content)
    return bytes([number << 3 | 2, *([length] if length < 128 else [length & 127 | 128, length >> 7])]) + content


def reference(place: int) -> bytes:
    """Encode the fields that point to LARGE in the file."""
    told = {b"location": b"model.onnx", b"offset": b"%d" % place, b"length": b"2048"}
    return b"".join(message(13, message(1, key) + message(2, value)) for key, value in told.items()) + b"\x70\x01"


@pytest.mark.parametrize("told", [b"", b"\x70\x00"], ids=["", "tensor names its location"])
def test_large_weights_become_references_and_all_else_stays(tmp_path, told):
    file = tmp_path / "model.onnx"
    tensors = message(5, SMALL + NAMED), message(5, NAMED + message(9, LARGE) + told)
    file.write_bytes(FIRST + message(7, NODE + tensors[0] + tensors[1]) + LAST)
    slim = message(5, NAMED + told + reference(file.read_bytes().index(LARGE)))
    assert without_weights(file) == FIRST + message(7, NODE + tensors[0] + slim) + LAST


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x3a\x7f\x00", "longer than its message"),
        (message(7, b"\x2a\x7f"), "longer than its message"),
        (b"\x80", "does not end"),
        (b"\x0b", "in no ONNX model"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, content, message):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        without_weights(tmp_path / "model.onnx")
