"""Damage to files as disks, downloads and strangers do it: seeded, so that each finding can be repeated.

    for seed in seeds():
        kind, content = mutate(original, seed)

`FUZZ_SEED` in the environment moves the start, to try other mutations than the last time.
"""

import os
import random
from collections.abc import Iterator

FAST, THOROUGH = 500, 10_000
EDGE = 4096  # headers and directories lie at the ends of a file: half of the mutations go there


def seeds(count: int = FAST) -> Iterator[int]:
    start = int(os.environ.get("FUZZ_SEED", 0))
    yield from range(start, start + count)


def mutate(content: bytes, seed: int, places: list[int] | None = None) -> tuple[str, bytes]:
    """Damage `content` in one way, and name the way. `places` are offsets worth hitting, such as those of headers."""
    generator = random.Random(seed)
    kind = generator.choice(list(MUTATIONS))
    aim = generator.random()
    if places and aim < 0.4:
        start = generator.choice(places) + generator.randrange(64)
    elif aim < 0.7:
        start = generator.choice([generator.randrange(EDGE), len(content) - 1 - generator.randrange(EDGE)])
    else:
        start = generator.randrange(len(content))
    start = min(max(start, 0), len(content) - 1)
    changed = MUTATIONS[kind](content, start, generator)
    return f"{kind} at {start:,} (seed {seed})", changed


def _flip(content: bytes, start: int, generator: random.Random) -> bytes:
    return content[:start] + bytes([content[start] ^ 1 << generator.randrange(8)]) + content[start + 1 :]


def _overwrite(content: bytes, start: int, generator: random.Random) -> bytes:
    value = generator.choice([0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)])
    return content[:start] + bytes([value]) + content[start + 1 :]


def _number(content: bytes, start: int, generator: random.Random) -> bytes:
    """Write a number of 2, 4 or 8 bytes that is small, huge, or one off."""
    width = generator.choice([2, 4, 8])
    old = int.from_bytes(content[start : start + width], "little")
    new = generator.choice([0, 1, old + 1, old - 1, old * 2, 1 << (8 * width - 1), (1 << 8 * width) - 1])
    return content[:start] + (new % (1 << 8 * width)).to_bytes(width, "little") + content[start + width :]


def _delete(content: bytes, start: int, generator: random.Random) -> bytes:
    return content[:start] + content[start + generator.choice([1, 1, 2, 4, 64, 1000]) :]


def _insert(content: bytes, start: int, generator: random.Random) -> bytes:
    return content[:start] + generator.randbytes(generator.choice([1, 1, 2, 4, 64, 1000])) + content[start:]


def _zero(content: bytes, start: int, generator: random.Random) -> bytes:
    length = min(generator.choice([4, 64, 512, 4096]), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def _repeat(content: bytes, start: int, generator: random.Random) -> bytes:
    """Write a range of the file over another, as a disk that mixes up its blocks."""
    length = min(generator.choice([16, 46, 512, 4096]), len(content) - start)
    source = generator.randrange(len(content))
    return (content[:start] + content[source : source + length] + content[start + length :])[: len(content)]


def _swap(content: bytes, start: int, generator: random.Random) -> bytes:
    first, second = sorted((start, generator.randrange(len(content))))
    length = min(generator.choice([1, 8, 46, 512]), second - first, len(content) - second)
    parts = (
        content[:first],
        content[second : second + length],
        content[first + length : second],
        content[first : first + length],
        content[second + length :],
    )
    return b"".join(parts)


def _truncate(content: bytes, start: int, generator: random.Random) -> bytes:
    return content[:start]


MUTATIONS = {
    "bit flipped": _flip,
    "byte overwritten": _overwrite,
    "number overwritten": _number,
    "bytes deleted": _delete,
    "bytes inserted": _insert,
    "run of zeros": _zero,
    "range repeated": _repeat,
    "ranges swapped": _swap,
    "cut short": _truncate,
}

__all__ = ["FAST", "THOROUGH", "mutate", "seeds"]
