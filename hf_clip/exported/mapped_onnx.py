"""An ONNX graph without its weights, which ONNX Runtime maps from the file itself instead of copying them.

Fields and numbers are those of onnx.proto; the wire format is Protocol Buffers'.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

GRAPH, INITIALIZER, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 7, 5, 9, 13, 14
KEY, VALUE, EXTERNAL = 1, 2, 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LEAST_BYTES = 1024  # of weights that are worth a reference


def without_weights(file: Path) -> bytes:
    """Return the model of an .onnx file in which large weights are references to their place in the file.

    Raises:
        ValueError: The file is not a serialized model.
    """
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return b"".join(
            _message(GRAPH, _graph(content, value, stop, file.name)) if number == GRAPH else content[begin:stop]
            for number, begin, value, stop in _fields(content, 0, len(content))
        )


def _graph(content: mmap.mmap, start: int, end: int, name: str) -> bytes:
    return b"".join(
        _message(INITIALIZER, _tensor(content, value, stop, name)) if number == INITIALIZER else content[begin:stop]
        for number, begin, value, stop in _fields(content, start, end)
    )


def _tensor(content: mmap.mmap, start: int, end: int, name: str) -> bytes:
    kept, references = [], []
    for number, begin, value, stop in _fields(content, start, end):
        if number != RAW_DATA or stop - value < LEAST_BYTES:
            kept.append(content[begin:stop])
            continue
        for key, told in (("location", name), ("offset", value), ("length", stop - value)):
            entry = _message(KEY, key.encode()) + _message(VALUE, str(told).encode())
            references.append(_message(EXTERNAL_DATA, entry))
        # at the end: a tensor may name its location already, and of two the last counts
        references.append(_varint(DATA_LOCATION << 3 | VARINT) + _varint(EXTERNAL))
    return b"".join(kept + references)


def _fields(content: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number of each field of a message, and where it, its value and the next field begin."""
    while position < end:
        start = position
        tag, position = _read_varint(content, position, end)
        value, kind = position, tag & 7
        if kind == VARINT:
            _, position = _read_varint(content, position, end)
        elif kind == BYTES:
            length, value = _read_varint(content, position, end)
            position = value + length
        elif kind in (FIXED32, FIXED64):
            position += 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"a field of kind {kind} is in no ONNX model")
        if position > end:
            raise ValueError("a field is longer than its message")
        yield tag >> 3, start, value, position


def _read_varint(content: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    number = shift = 0
    while position < end and shift < 64:
        byte = content[position]
        number, shift, position = number | (byte & 0x7F) << shift, shift + 7, position + 1
        if byte < 0x80:
            return number, position
    raise ValueError("a number does not end")


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


__all__ = ["without_weights"]
