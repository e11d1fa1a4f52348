"""Check zip archives before anything in them is used: no damage goes unseen, and no small file fills the memory."""

import mmap
import struct
import zipfile
import zlib
from pathlib import Path

from ..utils.files import CHUNK_BYTES
from .errors import CheckpointError

LOCAL_HEADER_BYTES = 30
# between the end of a member and the next header: nothing, or a data descriptor in one of its four forms
DESCRIPTOR_BYTES = {0, 12, 16, 20, 24}
MAX_MEMBERS = 100_000


class Budget:
    """Bounds on the unpacked size of a file of `packed` bytes, so that loading costs in proportion to it.

    Weights hardly compress, and a tensor that is expanded, or tied under several names, repeats bytes only so often.
    """

    EXPANSION = 20
    SLACK_BYTES = 64 << 20
    ENTRIES = 200_000  # the largest of the nine has 1,200 tensors; training checkpoints some ten thousand entries
    DEPTH = 32
    NAME_LENGTH = 1_000

    def __init__(self, path: Path):
        self.path = path
        self.bytes = self.EXPANSION * path.stat().st_size + self.SLACK_BYTES
        self.entries = 0

    def check_size(self, size: int) -> None:
        """Raise CheckpointError if the contents take `size` bytes in memory, and that is too much for this file."""
        if size > self.bytes:
            raise CheckpointError(
                f"{self.path} would unpack to {size:,} bytes, over {self.EXPANSION} times its size: save it again "
                "without compression, or convert only files that you trust"
            )

    def visit(self, name: str) -> None:
        """Count one entry of a nested structure, by its dotted path; raise CheckpointError where there are too many."""
        self.entries += 1
        if self.entries > self.ENTRIES or name.count(".") > self.DEPTH or len(name) > self.NAME_LENGTH:
            raise CheckpointError(
                f"{self.path} holds over {self.ENTRIES:,} entries, or nests them over {self.DEPTH} levels deep: save "
                "the state dict alone"
            )


def check_members(path: Path, archive: zipfile.ZipFile, mapped: mmap.mmap, checksums: bool) -> None:
    """Raise CheckpointError unless all members are whole, lie side by side, and unpack to a reasonable size.

    Readers of zip archives trust either the directory at the end or the header before each member. Where a damaged
    file makes the two disagree, weights of one tensor would be read for another's.

    Args:
        path: The file, for messages and for its size.
        archive: The same, opened.
        mapped: The same, memory-mapped.
        checksums: Compare the CRC-32 of all members, which takes one pass over the file.
    """
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    names = {member.filename.lower() for member in members}  # PyTorch's reader ignores case
    if len(names) < len(members) or len(members) > MAX_MEMBERS:
        raise CheckpointError(f"{path} is damaged (members with the same name, or too many): fetch it again")
    Budget(path).check_size(sum(member.file_size for member in members))
    ends = [*(member.header_offset for member in members[1:]), archive.start_dir]
    for member, next_start in zip(members, ends, strict=True):
        try:
            _check_member(archive, member, mapped, next_start, checksums)
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is damaged ({member.filename}: {error}): fetch it again") from error


def _check_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, mapped: mmap.mmap, next_start: int, checksums: bool
) -> None:
    if not 0 <= member.header_offset <= next_start <= len(mapped):
        raise zipfile.BadZipFile("its header lies outside the file")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # PyTorch reads no others
        raise zipfile.BadZipFile(f"compression {member.compress_type} is not known")
    with archive.open(member) as file:  # compares the name in the local header
        start = data_offset(member, mapped)
        if next_start - start - member.compress_size not in DESCRIPTOR_BYTES:
            raise zipfile.BadZipFile("it overlaps the next member, or leaves a gap before it")
        if member.compress_type != zipfile.ZIP_STORED:
            if checksums:
                while file.read(CHUNK_BYTES):  # compares the checksum at its end
                    pass
            return
    if member.compress_size != member.file_size:
        raise zipfile.BadZipFile("its two sizes differ")
    if checksums:
        with memoryview(mapped)[start : start + member.file_size] as content:
            if zlib.crc32(content) != member.CRC:
                raise zipfile.BadZipFile("its checksum is wrong")


def data_offset(member: zipfile.ZipInfo, mapped: mmap.mmap) -> int:
    """Return where a member's data begin in the file, which `zipfile` keeps to itself."""
    # a local header ends in the lengths of a name and an extra field, which follow it
    start = member.header_offset + LOCAL_HEADER_BYTES
    return start + sum(struct.unpack("<HH", mapped[start - 4 : start]))


__all__ = ["Budget", "check_members", "data_offset"]
