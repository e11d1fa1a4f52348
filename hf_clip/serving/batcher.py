"""Batches of items that arrive one by one: by kind, in order, within a budget, and each answer to its request."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from ..data.requests import RequestError
from .refusals import Refusal

Compute = Callable[[list[Any]], Sequence[Any]]
LONGEST_RETRY = 60.0
# share of the newest batch in the running mean of a unit's time
NEWEST = 0.2


@dataclass
class WorkKind:
    """One kind of work, whose items share batches with no other.

    Args:
        compute: Maps items to as many results, in a thread; a result that is an exception fails its item alone.
        budget: The most weight of a batch; one heavier item is a batch of its own.
        weigh: The weight of an item.
    """

    compute: Compute
    budget: int
    weigh: Callable[[Any], int] = lambda _: 1
    jobs: deque["Job"] = field(default_factory=deque)
    has_company: bool = False
    unit_seconds: float = 0.0


@dataclass(eq=False)
class Job:
    """An item that waits: where its result goes, the request that it is part of, and since when it waits."""

    item: Any
    weight: int
    request: object
    since: float
    result: asyncio.Future


class Batcher:
    """Compute items in batches, on threads of its own.

    A batch has items of one kind. It starts as soon as a thread is free; only if the batch before it served several
    requests, it waits up to `max_wait` seconds for others to fill it. So one client alone never waits.

    Args:
        kinds: The kinds of work by name.
        max_wait: Seconds that an item waits for company.
        max_waiting: Items that may wait, of all kinds together.
        threads: Batches that are computed at a time.
        observe: Called with the kind and the number of items of each batch.

    Example:
        >>> async with Batcher({"text": WorkKind(embed, 4096, len)}) as batcher:
        ...     rows = await batcher.submit("text", [ids])
    """

    def __init__(
        self,
        kinds: dict[str, WorkKind],
        max_wait: float = 0.005,
        max_waiting: int = 4096,
        threads: int = 1,
        observe: Callable[[str, int], None] = lambda kind, count: None,
    ):
        self.kinds, self._max_wait, self._max_waiting, self._observe = kinds, max_wait, max_waiting, observe
        self._threads = threads
        self._lanes: list[asyncio.Task] = []
        self._running: dict[asyncio.Task, float] = {}
        self.is_broken = False

    async def __aenter__(self) -> "Batcher":
        self._arrived = asyncio.Event()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="hf_clip_model")
        self._lanes = [asyncio.create_task(self._compute_batches()) for _ in range(self._threads)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def count_waiting(self, kind: str | None = None) -> int:
        """Return the number of items that wait, of one kind or of all."""
        return sum(len(each.jobs) for name, each in self.kinds.items() if kind in (None, name))

    def is_alive(self, longest: float) -> bool:
        """Return True unless a lane has ended, a batch takes over `longest` seconds, or the last batch failed."""
        now = monotonic()
        stuck = any(now - start > longest for start in self._running.values())
        return bool(self._lanes) and not (stuck or self.is_broken or any(lane.done() for lane in self._lanes))

    async def submit(self, kind: str, items: Sequence[Any]) -> list[Any]:
        """Compute the results of a request's items, in order; the result of an item that failed is its exception.

        Raises:
            Refusal: Too many items wait (429), or nothing computes (503).
        """
        if (waiting := self.count_waiting()) + len(items) > self._max_waiting:
            raise Refusal(
                429,
                f"{waiting:,} items wait for the model, at most {self._max_waiting:,} may: try again later",
                retry_after=self._seconds_to_wait(),
            )
        if all(lane.done() for lane in self._lanes):
            raise Refusal(503, "the model's threads have ended: restart the server")
        loop, now, request, weigh = asyncio.get_running_loop(), monotonic(), object(), self.kinds[kind].weigh
        jobs = [Job(item, weigh(item), request, now, loop.create_future()) for item in items]
        self.kinds[kind].jobs.extend(jobs)
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(job.result for job in jobs)))
        finally:
            for job in jobs:  # of a request that was given up; its items are dropped when their turn comes
                job.result.cancel()

    def _seconds_to_wait(self) -> float:
        seconds = sum(sum(job.weight for job in kind.jobs) * kind.unit_seconds for kind in self.kinds.values())
        return min(seconds, LONGEST_RETRY)

    async def _compute_batches(self) -> None:
        loop, lane = asyncio.get_running_loop(), asyncio.current_task()
        while True:
            name, jobs = await self._next_batch()
            kind, start = self.kinds[name], monotonic()
            self._running[lane] = start  # type: ignore[index]
            results = await loop.run_in_executor(self._pool, _results, kind.compute, [job.item for job in jobs])
            del self._running[lane]  # type: ignore[arg-type]
            seconds = (monotonic() - start) / max(1, sum(job.weight for job in jobs))
            kind.unit_seconds += NEWEST * (seconds - kind.unit_seconds) if kind.unit_seconds else seconds
            self.is_broken = all(_is_failure(result) for result in results)
            self._observe(name, len(jobs))
            for job, result in zip(jobs, results, strict=True):
                if not job.result.done():
                    job.result.set_result(result)

    async def _next_batch(self) -> tuple[str, list[Job]]:
        """Wait for the next batch: of the kinds that are due, the one whose first item came first."""
        while True:
            for kind in self.kinds.values():
                while kind.jobs and kind.jobs[0].result.done():
                    kind.jobs.popleft()
            waiting = sorted((k.jobs[0].since, name) for name, k in self.kinds.items() if k.jobs)
            due = {name: self._due(self.kinds[name]) for _, name in waiting}
            now = monotonic()
            for _, name in waiting:
                if due[name] <= now:
                    return name, self._take(self.kinds[name])
            self._arrived.clear()
            timer = asyncio.get_running_loop().call_later(min(due.values()) - now, self._arrived.set) if due else None
            try:
                await self._arrived.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    def _due(self, kind: WorkKind) -> float:
        is_full = sum(job.weight for job in kind.jobs) >= kind.budget
        return kind.jobs[0].since + (0 if is_full or not kind.has_company else self._max_wait)

    def _take(self, kind: WorkKind) -> list[Job]:
        taken: list[Job] = []
        weight = 0
        while kind.jobs and (not taken or weight + kind.jobs[0].weight <= kind.budget):
            job = kind.jobs.popleft()
            if not job.result.done():
                taken.append(job)
                weight += job.weight
        kind.has_company = len({id(job.request) for job in taken}) > 1
        return taken


def _results(compute: Compute, items: list[Any]) -> Sequence[Any]:
    """Compute a batch; if it fails as a whole, each item by itself, so that one cannot fail the others."""
    try:
        results = compute(items)
        if len(results) != len(items):
            raise RuntimeError(f"{len(items)} items gave {len(results)} results")
        return results
    except Exception as error:
        if len(items) == 1:
            return [error]
        return [result for item in items for result in _results(compute, [item])]


def _is_failure(result: Any) -> bool:
    return isinstance(result, Exception) and not isinstance(result, RequestError)


__all__ = ["Batcher", "WorkKind"]
