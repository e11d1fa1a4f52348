"""Damaged and hostile archives: refused in one sentence, in bounded time and memory; none loads other tensors."""

import io
import struct
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from support.fuzz import FAST, THOROUGH, mutate, seeds
from support.originals import clip

from hf_clip.openai.checkpoints import read_checkpoint
from hf_clip.openai.errors import CheckpointError

FORMATS = ["archive", "torch.save"]


def small_clip() -> torch.nn.Module:
    torch.manual_seed(0)
    return clip.model.CLIP(16, 16, 1, 64, 8, 8, 40, 64, 1, 1).eval()


@pytest.fixture(scope="module", params=FORMATS)
def file(request, tmp_path_factory) -> Path:
    """A checkpoint of 400 KB in each zip format."""
    path, model = tmp_path_factory.mktemp("small") / "small.pt", small_clip()
    if request.param == "torch.save":
        torch.save(model.state_dict(), path)
        return path
    clip.model.convert_weights(model)
    images, texts = torch.rand(1, 3, 16, 16), torch.randint(40, (1, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, (images, texts), check_trace=False).save(str(path))
    return path


def headers(path: Path) -> list[int]:
    with zipfile.ZipFile(path) as archive:
        return [member.header_offset for member in archive.infolist()] + [archive.start_dir] * 20


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def silently_different(file: Path, work: Path, count: int) -> tuple[list[str], int]:
    """Read mutated copies; return those that load other tensors without an error, and the number of those refused."""
    content, places, expected = file.read_bytes(), headers(file), read_checkpoint(file)
    different, refused = [], 0
    for seed in seeds(count):
        kind, changed = mutate(content, seed, places)
        work.write_bytes(changed)
        try:
            tensors = read_checkpoint(work)
        except CheckpointError:
            refused += 1
            continue
        if not same(tensors, expected):
            different.append(kind)
        del tensors
    return different, refused


@pytest.mark.parametrize("count", [FAST, pytest.param(THOROUGH, marks=pytest.mark.exhaustive)])
def test_no_damaged_archive_loads_other_tensors(file, count, tmp_path):
    different, refused = silently_different(file, tmp_path / "x.pt", count)
    assert different == []
    assert refused > count / 2


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, contents, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that repeat
        for name, content in contents:
            archive.writestr(name, content)
    return path


def test_the_checksum_of_a_published_file_is_enough(file, tmp_path):
    """With `verified`, a wrong CRC passes, and the structure is checked nevertheless."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
    content[member.header_offset + member.file_size // 2] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="its checksum is wrong"):
        read_checkpoint(tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt", verified=True)
    (tmp_path / "x.pt").write_bytes(content[:2000] + content[2001:])
    with pytest.raises(CheckpointError, match=r"is damaged|is cut short"):
        read_checkpoint(tmp_path / "x.pt", verified=True)


def test_a_member_that_the_directory_leaves_out(file, tmp_path):
    """Of two readers, one would see it."""
    content = rewrite(tmp_path / "x.pt", members(file).items()).read_bytes()
    names = [name.encode() for name in members(file)]
    first, second = (content.rindex(b"PK\x01\x02", 0, content.rindex(name)) for name in names[4:6])
    directory = second - first
    end = bytearray(content[-22:])
    struct.pack_into("<I", end, 12, struct.unpack_from("<I", end, 12)[0] - directory)
    (tmp_path / "x.pt").write_bytes(content[:first] + content[second:-22] + end)
    with pytest.raises(CheckpointError, match="leaves a gap"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("change", [str.upper, lambda name: name])
def test_two_members_of_one_name(file, change, tmp_path):
    contents = [*members(file).items()]
    name, content = next((name, content) for name, content in contents if name.endswith("/data.pkl"))
    root = name.partition("/")[0]
    again = f"{root}/{change('data.pkl')}"
    with pytest.raises(CheckpointError, match="members with the same name"):
        read_checkpoint(rewrite(tmp_path / "x.pt", [*contents, (again, content)]))


# --- time and memory --------------------------------------------------------------------------------------------------


def pickled_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def script(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def module(attributes: bytes) -> bytes:
    return b"c__torch__\nM\n)\x81}" + attributes + b"b"


def module_graph(levels: int = 40) -> bytes:
    """Modules that hold the one below twice: 2 ** levels paths in a few bytes for each."""
    opcodes = module(b"") + b"q\x00"
    for level in range(levels):
        below = b"h" + bytes([level])
        opcodes += (
            module(b"(" + b"".join(pickled_text(name) + below for name in "ab") + b"u") + b"q" + bytes([level + 1])
        )
    return script(opcodes)


def archive(path: Path, pickle: bytes, compression=zipfile.ZIP_STORED, **more: bytes) -> None:
    contents = {"x/data.pkl": pickle, "x/constants.pkl": b"", **{f"x/{name}": text for name, text in more.items()}}
    rewrite(path, contents.items(), compression)


def shared_dicts(path: Path) -> None:
    content = {"weight": torch.ones(1)}
    for _ in range(40):
        content = {"a": content, "b": content}
    torch.save(content, path)


def deep_dicts(path: Path) -> None:
    content = {"weight": torch.ones(1)}
    for _ in range(100):
        content = {"a": content}
    torch.save(content, path)


def cyclic_dict(path: Path) -> None:
    content = {"weight": torch.ones(1)}
    content["self"] = content
    torch.save(content, path)


def saved_pickle(path: Path, opcodes: bytes) -> None:
    stream = io.BytesIO()
    torch.save({"weight": torch.ones(1)}, stream)
    stream.seek(0)
    with zipfile.ZipFile(stream) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    root = next(iter(contents)).partition("/")[0]
    rewrite(path, (contents | {f"{root}/data.pkl": opcodes}).items())


def many_classes(path: Path) -> None:
    """Each class is looked up in the same large file of code."""
    code = "".join(
        f'class M{number}(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = []\n' for number in range(20_000)
    )
    opcodes = b"".join(b"c__torch__\nM%d\n)\x81}b0" % number for number in range(20_000))
    archive(path, script(opcodes + module(b"")), zipfile.ZIP_DEFLATED, **{"code/__torch__.py": code.encode()})


def many_storages(path: Path) -> None:
    """One compressed storage of 40 MB, asked for 300 times."""
    pid = b"(" + pickled_text("storage") + b"ctorch\nFloatStorage\n" + pickled_text("0") + pickled_text("cpu")
    pid += b"J" + struct.pack("<i", 10_000_000) + b"tQ"
    attributes = b"".join(pickled_text(f"w{number}") + pid for number in range(300))
    archive(path, script(module(b"(" + attributes + b"u")), zipfile.ZIP_DEFLATED, **{"data/0": bytes(40_000_000)})


BOMBS = {
    "dicts that share dicts": (shared_dicts, "nests them over 32 levels|holds over 200,000 entries"),
    "dicts in dicts": (deep_dicts, "nests them over 32 levels"),
    "a dict that holds itself": (cyclic_dict, "nests them over 32 levels"),
    "modules that share modules": (lambda path: archive(path, module_graph()), "nests them over 32 levels|entries"),
    "text memo index": (lambda path: archive(path, script(b"}p2000000000\n")), "memo index out of range"),
    "binary memo index": (
        lambda path: archive(path, script(b"}r" + struct.pack("<I", 2_000_000_000))),
        "memo index out of range",
    ),
    "bytearray": (
        lambda path: saved_pickle(path, script(b"cbuiltins\nbytearray\n(\x8a\x05\x00\x00\x00\x00\x04tR")),
        "holds a bytearray",
    ),
    "zip bomb": (
        lambda path: archive(path, script(module(b"")), zipfile.ZIP_DEFLATED, **{"data/0": bytes(200_000_000)}),
        "would unpack to 200,",
    ),
    "bomb in the pickle": (
        lambda path: archive(path, b"\x80\x02" + b"N0" * 9_000_000 + b"N.", zipfile.ZIP_DEFLATED),
        "holds a pickle of over",
    ),
    "expanded tensor": (
        lambda path: torch.save({"weight": torch.ones(1).expand(10**11)}, path),
        "would unpack to 400,000,000,000 bytes",
    ),
    "many towers": (
        lambda path: torch.save(
            {f"{n}.{key}": torch.ones(0) for n in range(3000) for key in ("token_embedding.weight", "visual.x")}, path
        ),
        "several CLIPs",
    ),
    "many classes": (many_classes, "holds no tensors"),
    "one storage many times": (many_storages, "would unpack to"),
}
SECONDS, MEMORY_MIB = 20, 600


@pytest.mark.parametrize(("make", "message"), BOMBS.values(), ids=BOMBS)
def test_small_files_take_little_time_and_memory(make, message, tmp_path):
    make(tmp_path / "x.pt")
    resource = pytest.importorskip("resource")  # not on Windows
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(tmp_path / "x.pt")
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_MIB * 1024
    assert len(str(error.value)) < 1000
