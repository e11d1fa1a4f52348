"""Numbers that Prometheus reads: requests, latencies, batches, queues and refusals."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class ServerMetrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("hf_clip_requests", "Answers.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "hf_clip_request_seconds", "Seconds from a request's head to its answer.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.refusals = Counter("hf_clip_refusals", "Refused requests.", ["status"], registry=self.registry)
        self.batches = Histogram(
            "hf_clip_batch_items", "Items in a batch.", ["kind"], buckets=SIZES, registry=self.registry
        )
        self.in_flight = Gauge("hf_clip_requests_in_flight", "Requests being answered.", registry=self.registry)
        self._waiting = Gauge("hf_clip_waiting_items", "Items that wait.", ["kind"], registry=self.registry)
        self._ready = Gauge("hf_clip_ready", "1 if the model answers.", registry=self.registry)

    def watch(self, kind: str, count_waiting: Callable[[], int]) -> None:
        """Read the length of a queue whenever it is asked for."""
        self._waiting.labels(kind).set_function(count_waiting)

    def watch_ready(self, is_ready: Callable[[], bool]) -> None:
        """Read whether the server is ready whenever it is asked for."""
        self._ready.set_function(is_ready)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        if status >= 400:
            self.refusals.labels(str(status)).inc()

    def batched(self, kind: str, count: int) -> None:
        """Count a batch."""
        self.batches.labels(kind).observe(count)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


__all__ = ["ServerMetrics"]
