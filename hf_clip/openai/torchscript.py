"""Read tensors out of TorchScript archives without compiling or running their code."""

import io
import mmap
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from .errors import CheckpointError

STORAGE_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


class _ScriptModule:
    """Inert stand-in for a class of the archive. `declared` lists its parameters and buffers."""

    declared: frozenset[str] | None

    def __setstate__(self, attributes: dict) -> None:
        self.attributes = attributes


class _ScriptUnpickler(pickle.Unpickler):
    """Unpickler that builds the module tree from tensors and inert stand-ins, and refuses any other class."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        self.path, self.archive, self.root = path, archive, root
        with path.open("rb") as file:
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if self._text("byteorder", default=sys.byteorder) != sys.byteorder:
            raise CheckpointError(f"{path} was written on a machine of the other byte order: save it again on this one")
        data = archive.read(f"{root}/data.pkl")
        # the C unpickler allocates its memo up to the highest index that it is told of
        if any(op.name == "LONG_BINPUT" and int(index or 0) > len(data) for op, index, _ in pickletools.genops(data)):
            raise CheckpointError(f"{path} is damaged (memo index out of range): fetch it again")
        super().__init__(io.BytesIO(data))

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "__torch__":
            return type(name, (_ScriptModule,), {"declared": self._declared(module, name)})
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" or (module, name) == ("torch", "device"):
            return self._first  # typed lists, dicts and devices: attributes that no state dict holds
        raise CheckpointError(f"{self.path} asks for {module}.{name}, which no CLIP archive needs: it was not read")

    def persistent_load(self, pid: tuple) -> torch.Tensor:
        """Return a storage as a flat tensor over the memory-mapped file."""
        _, dtype, key, _, length = pid
        info = self.archive.getinfo(f"{self.root}/data/{key}")
        if not 0 <= length * dtype.itemsize <= info.file_size:
            raise CheckpointError(f"{self.path} is damaged (storage {key} is too short): fetch it again")
        if length == 0:
            return torch.empty(0, dtype=dtype)
        if info.compress_type != zipfile.ZIP_STORED:
            return torch.frombuffer(bytearray(self.archive.read(info)), dtype=dtype, count=length)
        start = self._data_offset(info)
        flat = torch.frombuffer(self.mapped, dtype=dtype, count=length, offset=start)
        return flat if start % dtype.itemsize == 0 else flat.clone()

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        # zipfile does not tell: the 30 bytes of a local header end in the lengths of a name and an extra field after it
        start = info.header_offset + 30
        return start + sum(struct.unpack("<HH", self.mapped[start - 4 : start]))

    def _tensor(self, storage, offset, size, stride, requires_grad, hooks, metadata=None) -> torch.Tensor:
        if metadata:
            raise CheckpointError(f"{self.path} holds a lazily negated or conjugated tensor: save it again without")
        return storage.as_strided(size, stride, offset)

    @staticmethod
    def _first(value: object, *_: object) -> object:
        return value

    def _declared(self, module: str, name: str) -> frozenset[str] | None:
        """Return the parameters and buffers that the archive's code declares for a class, None if it declares none."""
        lists = re.search(
            rf"^class {re.escape(name)}\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$",
            self._text(f"code/{module.replace('.', '/')}.py"),
            re.MULTILINE,
        )
        return frozenset(re.findall(r'"([^"]*)"', lists[1] + lists[2])) if lists else None

    def _text(self, name: str, default: str = "") -> str:
        try:
            return self.archive.read(f"{self.root}/{name}").decode()
        except KeyError:
            return default


def read_archive(path: Path, archive: zipfile.ZipFile, root: str) -> dict[str, torch.Tensor]:
    """Read the state dict of the module in the folder `root` of `archive`, over the memory-mapped file `path`."""
    return _state_dict(_ScriptUnpickler(path, archive, root).load())


def _state_dict(module: _ScriptModule, prefix: str = "") -> dict[str, torch.Tensor]:
    """Collect parameters and buffers, equal to `torch.jit.load(path).state_dict()` and in its order."""
    tensors = {
        f"{prefix}{name}": value
        for name, value in module.attributes.items()
        if isinstance(value, torch.Tensor) and (module.declared is None or name in module.declared)
    }
    for name, value in module.attributes.items():
        if isinstance(value, _ScriptModule):
            tensors |= _state_dict(value, f"{prefix}{name}.")
    return tensors


__all__ = ["read_archive"]
