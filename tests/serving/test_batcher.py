"""Batches by kind, budget and order, with functions in the place of models."""

import asyncio
import threading

import pytest

from hf_clip.data.requests import RequestError
from hf_clip.serving.batcher import Batcher, WorkKind
from hf_clip.serving.refusals import Refusal


class Model:
    """Double numbers; keeps its batches, and waits for `gate` before each."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: list[int]) -> list[int | Exception]:
        self.gate.wait(10)
        self.batches.append(items)
        if 13 in items:
            raise RuntimeError("unlucky")
        return [RequestError("odd one") if item == 7 else 2 * item for item in items]


def waits(batcher: Batcher, count: int):
    """Wait until so many items are in the queue."""

    async def wait() -> None:
        while batcher.count_waiting() < count:
            await asyncio.sleep(0)

    return asyncio.wait_for(wait(), 10)


async def held(batcher: Batcher, model: Model, *requests: tuple[str, list[int]]) -> list:
    """Submit requests in order while the model computes a first item, and give their results."""
    model.gate.clear()
    first = asyncio.ensure_future(batcher.submit(requests[0][0], [0]))
    while not batcher._running:
        await asyncio.sleep(0)
    tasks, count = [], 0
    for kind, items in requests:
        count += len(items)
        tasks.append(asyncio.ensure_future(batcher.submit(kind, items)))
        await waits(batcher, count)
    model.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def run(test, kinds=None, **options):
    model = Model()

    async def main():
        made = kinds(model) if kinds else {"number": WorkKind(model, 4)}
        async with Batcher(made, **options) as batcher:
            return await test(batcher, model)

    return asyncio.run(asyncio.wait_for(main(), 30)), model


def test_each_result_goes_to_its_request():
    (results), model = run(lambda b, m: held(b, m, ("number", [1]), ("number", [2, 3]), ("number", [4, 5])))
    assert results == [[2], [4, 6], [8, 10]]
    assert model.batches == [[0], [1, 2, 3, 4], [5]]


def test_kinds_never_share_a_batch_and_the_oldest_comes_first():
    def kinds(model):
        return {"a": WorkKind(model, 8), "b": WorkKind(model, 8)}

    results, model = run(lambda b, m: held(b, m, ("b", [1]), ("a", [100]), ("b", [2]), ("a", [101])), kinds, max_wait=0)
    assert results == [[2], [200], [4], [202]]
    assert model.batches == [[0], [1, 2], [100, 101]]


def test_a_budget_of_weight_holds():
    def kinds(model):
        return {"number": WorkKind(model, 10, lambda item: max(1, item))}

    _, model = run(lambda b, m: held(b, m, ("number", [4, 5, 2, 30, 1])), kinds, max_wait=0)
    assert model.batches == [[0], [4, 5], [2], [30], [1]]


def test_a_failing_item_fails_alone():
    results, _ = run(lambda b, m: held(b, m, ("number", [1, 13]), ("number", [7, 2])))
    assert results[0][0] == 2
    assert isinstance(results[0][1], RuntimeError)
    assert isinstance(results[1][0], RequestError)
    assert results[1][1] == 4


def test_a_client_alone_does_not_wait_for_company():
    async def one_by_one(batcher, model):
        return [await batcher.submit("number", [item]) for item in range(5)]

    # each would wait a minute
    _, model = run(one_by_one, max_wait=60)
    assert model.batches == [[item] for item in range(5)]


def test_a_busy_server_waits_for_company():
    async def test(batcher, model):
        await held(batcher, model, ("number", [1]), ("number", [2]))
        late = asyncio.ensure_future(batcher.submit("number", [3]))
        await asyncio.sleep(0.01)
        return await asyncio.gather(late, batcher.submit("number", [4, 5, 6]))

    # full batches start before the minute is over
    results, model = run(test, max_wait=60)
    assert results == [[6], [8, 10, 12]]
    assert model.batches[-1] == [3, 4, 5, 6]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    async def test(batcher, model):
        model.gate.clear()
        running = asyncio.ensure_future(batcher.submit("number", [1]))
        while not batcher._running:
            await asyncio.sleep(0)
        waiting = asyncio.ensure_future(batcher.submit("number", [2, 3, 4]))
        await waits(batcher, 3)
        with pytest.raises(Refusal, match="3 items wait for the model, at most 4 may") as refused:
            await batcher.submit("number", [5, 6])
        model.gate.set()
        return refused.value, await running, await waiting

    (refusal, *results), _ = run(test, max_waiting=4)
    assert refusal.status == 429
    assert int(refusal.headers["Retry-After"]) >= 1
    assert results == [[2], [4, 6, 8]]


def test_items_of_a_request_that_is_given_up_are_not_computed():
    async def test(batcher, model):
        model.gate.clear()
        running = asyncio.ensure_future(batcher.submit("number", [1]))
        while not batcher._running:
            await asyncio.sleep(0)
        given_up = asyncio.ensure_future(batcher.submit("number", [2, 3]))
        await waits(batcher, 2)
        kept = asyncio.ensure_future(batcher.submit("number", [4]))
        await waits(batcher, 3)
        given_up.cancel()
        await asyncio.wait([given_up])
        model.gate.set()
        return await running, await kept

    _, model = run(test)
    assert model.batches == [[1], [4]]


def test_a_dead_stuck_or_failing_thread_is_seen():
    async def test(batcher, model):
        assert batcher.is_alive(60)
        await batcher.submit("number", [13])
        assert not batcher.is_alive(60)
        await batcher.submit("number", [7])  # the request's own fault
        assert batcher.is_alive(60)
        model.gate.clear()
        running = asyncio.ensure_future(batcher.submit("number", [1]))
        while not batcher._running:
            await asyncio.sleep(0)
        assert not batcher.is_alive(0)
        model.gate.set()
        await running
        batcher._lanes[0].cancel()
        await asyncio.wait(batcher._lanes)
        assert not batcher.is_alive(60)
        with pytest.raises(Refusal, match="have ended") as refused:
            await batcher.submit("number", [1])
        return refused.value.status

    assert run(test)[0] == 503
