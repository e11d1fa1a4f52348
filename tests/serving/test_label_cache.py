"""Label sets: made once, shared by requests at a time, forgotten beyond a bound of bytes."""

import asyncio

import numpy as np
import pytest

from hf_clip.serving.label_cache import LabelSetCache

KEYS = [((f"label {number}",), ("{}",)) for number in range(4)]
# one row of 64 float32, and two texts
BYTES = 256 + 2 * 64 + 4 * (len("label 0") + len("{}"))


class Maker:
    def __init__(self) -> None:
        self.made = 0
        self.failing = False

    async def __call__(self) -> np.ndarray:
        await asyncio.sleep(0)
        self.made += 1
        if self.failing:
            raise ValueError("no")
        return np.zeros((1, 64), np.float32)


def test_sets_are_kept_within_the_bound_and_the_oldest_goes_first():
    cache, make = LabelSetCache(most_bytes=2 * BYTES), Maker()

    async def main():
        for key in (KEYS[0], KEYS[1], KEYS[0], KEYS[2], KEYS[0], KEYS[1]):
            await cache.get(key, make)

    asyncio.run(main())
    # 0 was used after 1, so 2 replaced 1, and 1 was made again
    assert make.made == 4
    assert len(cache) == 2
    assert cache.bytes == 2 * BYTES


def test_a_set_larger_than_the_bound_is_not_kept():
    cache, make = LabelSetCache(most_bytes=BYTES - 1), Maker()
    assert asyncio.run(cache.get(KEYS[0], make)).shape == (1, 64)
    assert (len(cache), cache.bytes) == (0, 0)


def test_requests_at_a_time_share_the_work_and_one_that_leaves_takes_nothing_along():
    cache, make = LabelSetCache(), Maker()

    async def main():
        first, second = (asyncio.ensure_future(cache.get(KEYS[0], make)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return (await second).shape

    assert asyncio.run(main()) == (1, 64)
    assert make.made == 1


def test_a_failure_is_not_kept():
    cache, make = LabelSetCache(), Maker()
    make.failing = True

    async def main():
        with pytest.raises(ValueError, match="no"):
            await cache.get(KEYS[0], make)
        make.failing = False
        await cache.get(KEYS[0], make)

    asyncio.run(main())
    assert make.made == 2
