"""Read tensors out of TorchScript archives without compiling or running their code."""

import io
import mmap
import pickle
import pickletools
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from .archives import Budget, data_offset
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
MAX_PICKLE_BYTES = 16 << 20  # the largest of the nine has 0.3 MB
CLASS = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*)\]\n  __buffers__ = \[(.*)\]$", re.MULTILINE)


class _ScriptModule:
    """Inert stand-in for a class of the archive. `declared` lists its parameters and buffers."""

    declared: frozenset[str] | None

    def __setstate__(self, attributes: dict) -> None:
        self.attributes = attributes


class _ScriptUnpickler(pickle.Unpickler):
    """Unpickler that builds the module tree from tensors and inert stand-ins, and refuses any other class."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, mapped: mmap.mmap, root: str) -> None:
        self.path, self.archive, self.mapped, self.root = path, archive, mapped, root
        # each is built once: an archive may ask for the same class or storage any number of times
        self.classes: dict[tuple[str, str], type] = {}
        self.declared: dict[str, dict[str, frozenset[str]]] = {}
        self.storages: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        if self._text("byteorder", default=sys.byteorder) != sys.byteorder:
            raise CheckpointError(f"{path} was written on a machine of the other byte order: save it again on this one")
        if archive.getinfo(f"{root}/data.pkl").file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path} holds a pickle of over {MAX_PICKLE_BYTES:,} bytes: no CLIP is that large")
        data = archive.read(f"{root}/data.pkl")
        # the C unpickler allocates its memo up to the highest index that it is told of
        stores = ("PUT", "BINPUT", "LONG_BINPUT")
        if any(op.name in stores and int(index or 0) > len(data) for op, index, _ in pickletools.genops(data)):
            raise CheckpointError(f"{path} is damaged (memo index out of range): fetch it again")
        super().__init__(io.BytesIO(data))

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "__torch__":
            if (module, name) not in self.classes:
                self.classes[module, name] = type(name, (_ScriptModule,), {"declared": self._declared(module, name)})
            return self.classes[module, name]
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
        if (key, dtype) not in self.storages:
            self.storages[key, dtype] = self._storage(key, dtype, length)
        storage = self.storages[key, dtype]
        if len(storage) != length:
            raise CheckpointError(f"{self.path} is damaged (two lengths of storage {key}): fetch it again")
        return storage

    def _storage(self, key: str, dtype: torch.dtype, length: int) -> torch.Tensor:
        info = self.archive.getinfo(f"{self.root}/data/{key}")
        if not 0 <= length * dtype.itemsize <= info.file_size:
            raise CheckpointError(f"{self.path} is damaged (storage {key} is too short): fetch it again")
        if length == 0:
            return torch.empty(0, dtype=dtype)
        if info.compress_type != zipfile.ZIP_STORED:
            return torch.frombuffer(bytearray(self.archive.read(info)), dtype=dtype, count=length)
        start = data_offset(info, self.mapped)
        flat = torch.frombuffer(self.mapped, dtype=dtype, count=length, offset=start)
        return flat if start % dtype.itemsize == 0 else flat.clone()

    def _tensor(self, storage, offset, size, stride, requires_grad, hooks, metadata=None) -> torch.Tensor:
        if metadata:
            raise CheckpointError(f"{self.path} holds a lazily negated or conjugated tensor: save it again without")
        return storage.as_strided(size, stride, offset)

    @staticmethod
    def _first(value: object, *_: object) -> object:
        return value

    def _declared(self, module: str, name: str) -> frozenset[str] | None:
        """Return the parameters and buffers that the archive's code declares for a class, None if it declares none."""
        if module not in self.declared:
            code = self._text(f"code/{module.replace('.', '/')}.py")
            self.declared[module] = {
                found[1]: frozenset(re.findall(r'"([^"]*)"', found[2] + found[3])) for found in CLASS.finditer(code)
            }
        return self.declared[module].get(name)

    def _text(self, name: str, default: str = "") -> str:
        try:
            return self.archive.read(f"{self.root}/{name}").decode()
        except KeyError:
            return default


def read_archive(path: Path, archive: zipfile.ZipFile, mapped: mmap.mmap, root: str) -> dict[str, torch.Tensor]:
    """Read the state dict of the module in the folder `root` of `archive`; tensors lie over the `mapped` file."""
    return _state_dict(_ScriptUnpickler(path, archive, mapped, root).load(), Budget(path))


def is_archive(path: Path) -> bool:
    """Return True if the file is TorchScript, with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _state_dict(module: Any, budget: Budget, prefix: str = "") -> dict[str, torch.Tensor]:
    """Collect parameters and buffers, equal to `torch.jit.load(path).state_dict()` and in its order."""
    tensors = {
        f"{prefix}{name}": value
        for name, value in module.attributes.items()
        if isinstance(value, torch.Tensor) and (module.declared is None or name in module.declared)
    }
    for name, value in module.attributes.items():
        budget.visit(f"{prefix}{name}")
        if isinstance(value, _ScriptModule):
            tensors |= _state_dict(value, budget, f"{prefix}{name}.")
    return tensors


__all__ = ["is_archive", "read_archive"]
