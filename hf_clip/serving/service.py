"""The service behind the routes: one model, its batches, its labels, its index, and whether it is ready."""

import asyncio
import io
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import time
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..data.images import Exif
from ..data.requests import RequestError
from ..utils.text import first_line
from .batcher import Batcher, WorkKind
from .engine import Embedding, ServedModel
from .inputs import InputReader, Item, refusal_of
from .label_cache import LabelSetCache
from .metrics import ServerMetrics
from .refusals import Refusal
from .schemas import TextInput

# tokens of texts in a batch; the same budget as offline
MAX_BATCH_TOKENS = 4096
MAX_WAITING_ITEMS = 4096
# requests that are longer on their way are given up, and a batch that takes longer makes the server unready
REQUEST_SECONDS = 60.0
READER_THREADS = 16
_T = TypeVar("_T")


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Args:
        name: The model's name in answers.
        index: The directory of an index, for /search.
        labels: Labels of /classify unless a request has its own.
        templates: Templates, likewise (default: that of the library).
        classifier: A file that `ZeroShotClassifier.save` wrote, in place of labels and templates.
        max_batch: The most images of a batch.
        max_wait_ms: Milliseconds that a batch waits for others while several clients are busy.
        api_key: The key that requests need.
        allow_urls: Hosts that images are downloaded from.
        cors: Origins whose pages may call the server.
        exif: "apply" turns images as their EXIF orientation says.
        max_waiting: Items that may wait.
        max_seconds: Seconds that a request may take.
    """

    name: str
    index: str | None = None
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    classifier: str | None = None
    max_batch: int = 32
    max_wait_ms: float = 5.0
    api_key: str | None = None
    allow_urls: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    exif: Exif = "ignore"
    max_waiting: int = MAX_WAITING_ITEMS
    max_seconds: float = REQUEST_SECONDS


class ClipService:
    """Answer requests with one model.

    Args:
        load: Loads the model and its processor, in a thread.
        settings: The settings.
    """

    served: ServedModel
    batcher: Batcher
    reader: InputReader
    dimensions: int
    missing: dict[str, str]
    templates: tuple[str, ...]
    default_classes: Any
    saved_head: Any

    def __init__(self, load: Callable[[], tuple[Any, Any]], settings: ServerSettings):
        self._load, self.settings = load, settings
        self.metrics = ServerMetrics()
        self.metrics.watch_ready(self.is_ready)
        self.state = "starting"
        self.failure: BaseException | None = None
        self.created = int(time())
        self.index: Any = None
        self._labels = LabelSetCache()
        self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="hf_clip_read")

    async def start(self) -> None:
        """Load the model and begin to compute; whatever loading raises is kept as `failure`."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future = loop.create_future()

        def load() -> None:
            try:
                self._load_all()
            except BaseException as error:
                self.failure = error
            with suppress(RuntimeError):  # the server was stopped in the meantime
                loop.call_soon_threadsafe(loaded.set_result, None)

        # a daemon, so that a server which is stopped while it loads need not wait
        threading.Thread(target=load, name="hf_clip_load", daemon=True).start()
        await asyncio.shield(loaded)
        if self.failure is not None:
            self.state = "failed"
            return
        settings, served = self.settings, self.served
        kinds = {
            "image": WorkKind(served.embed_contents, settings.max_batch),
            "text": WorkKind(served.embed_ids, MAX_BATCH_TOKENS, len),
            "where": WorkKind(served.map_texts, 1),
        }
        self.batcher = Batcher(
            kinds, settings.max_wait_ms / 1000, settings.max_waiting, served.threads, self.metrics.batched
        )
        for kind in kinds:
            self.metrics.watch(kind, lambda kind=kind: self.batcher.count_waiting(kind))  # type: ignore[misc]
        await self.batcher.__aenter__()
        if self.state == "starting":
            self.state = "ready"

    def _load_all(self) -> None:
        self.served = ServedModel(*self._load(), exif=self.settings.exif)
        self.missing, self.dimensions = self.served.probe()
        self.reader = InputReader(self.served, self.settings.allow_urls)
        self.templates = self.settings.templates or self.served.default_templates()
        if self.settings.labels:
            self.default_classes = self.served.embed_labels(self.settings.labels, self.templates)
        classifier = self.settings.classifier
        self.saved_head = None if classifier is None else self.served.load_head(classifier)
        if self.saved_head is not None:
            self.saved_head.check_exif(self.settings.exif)
        if self.settings.index is not None:
            from ..search.index import ImageIndex

            self.index = ImageIndex.load(self.settings.index, self.served.model, self.served.processor)
            if self.index.exif != self.settings.exif:
                raise ValueError(
                    f"{self.settings.index} was made with exif {self.index.exif}, requests are read with exif "
                    f"{self.settings.exif}: pass --exif {self.index.exif}"
                )

    async def stop(self) -> None:
        """Stop computing."""
        self.state = "draining"
        if hasattr(self, "batcher"):
            await self.batcher.__aexit__()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def is_ready(self) -> bool:
        """Return True if the model answers."""
        return self.state == "ready" and self.batcher.is_alive(self.settings.max_seconds)

    async def check_ready(self) -> None:
        """Raise Refusal unless the model answers; after a batch that failed, ask it once more."""
        if self.state == "ready" and self.batcher.is_broken:
            part = "text" if "text" not in self.missing else "image"
            await self.batcher.submit(part, [tuple(self.served.start_and_end()) if part == "text" else _blank_image()])
        if not self.is_ready():
            states = {"ready": "the model does not answer: restart the server"}
            raise Refusal(503, states.get(self.state, f"the server is {self.state}: try again later"), retry_after=5)

    async def read(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call a function that reads inputs or forms answers on a thread, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    async def embed(self, items: Sequence[Item]) -> list[Embedding]:
        """Embed images and texts; results are in the order of the items.

        Raises:
            Refusal: An item cannot be embedded; the first such item is named.
        """
        kinds = [kind for kind in ("image", "text") if any(item.kind == kind for item in items)]
        for kind in kinds:
            if kind in self.missing:
                raise Refusal(501, f"this server embeds no {kind}s: {self.missing[kind]}")
        places = {kind: [place for place, item in enumerate(items) if item.kind == kind] for kind in kinds}
        rows = await asyncio.gather(
            *(self.batcher.submit(kind, [items[place].value for place in places[kind]]) for kind in kinds)
        )
        results: list[Any] = [None] * len(items)
        for kind, found in zip(kinds, rows, strict=True):
            for place, result in zip(places[kind], found, strict=True):
                results[place] = result
        for item, result in zip(items, results, strict=True):
            _raise_if_failed(result, item.param)
        return results

    async def embed_labels(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> Any:
        """Return the class embeddings of a request's labels; those of a set that came before are kept.

        Raises:
            Refusal: A label is empty or too long.
        """
        if (labels, templates) == (self.settings.labels, self.templates):
            return self.default_classes

        async def make() -> Any:
            prompts = [
                (f"labels[{place}]", TextInput(text=template.format(label)))
                for place, label in enumerate(labels)
                for template in templates
            ]
            rows = await self.embed(await self.read(self.reader.read_all, prompts))
            return self.served.average_prompts([row.unit for row in rows], len(templates))

        return await self._labels.get((labels, templates), make)

    async def make_head(
        self, labels: tuple[str, ...], templates: tuple[str, ...], mode: str, background: tuple[str, ...]
    ) -> Any:
        """Return the head of labels, or without labels that of the saved classifier.

        Raises:
            Refusal: A label is empty or too long.
        """
        if not labels:
            return self.saved_head
        class_embeds = await self.embed_labels(labels, templates)
        background_embeds = await self.embed_labels(background, templates) if background else None
        return self.served.make_head(labels, templates, mode, class_embeds, background, background_embeds)

    async def map_texts(self, image: Item, texts: tuple[str, ...], method: str, whole: bool) -> tuple[Any, np.ndarray]:
        """Return the picture that was read, and maps (texts, height, width)."""
        if not self.served.has_maps() or self.missing:
            raise Refusal(501, "this server's model has no maps: serve the model that it was exported from")
        [result] = await self.batcher.submit("where", [(image.value, texts, method, whole)])
        return _raise_if_failed(result, image.param)

    async def search(self, query: np.ndarray, k: int, where: Sequence[str], min_score: float) -> list[dict[str, Any]]:
        """Find the images of the index that are most similar to a vector of any length."""
        from ..search.filters import parse_condition

        def find() -> list[dict[str, Any]]:
            if query.shape != (self.dimensions,):
                raise RequestError(f"the vector has {len(query)} numbers, embeddings have {self.dimensions}")
            with np.errstate(over="ignore"):
                length = float(np.linalg.norm(query))
            if not 1e-6 < length < np.inf:
                raise RequestError("the query is zero, or too long: change its texts, images or numbers")
            conditions = [parse_condition(condition) for condition in where]
            return self.index.find((query / length).astype(np.float32), k, conditions or None, min_score)

        try:
            return await self.read(find)
        except ValueError as error:
            raise Refusal(422, first_line(error)) from error


def _blank_image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def _raise_if_failed(result: Any, param: str) -> Any:
    """Return a result of the batcher, or raise it where it is an exception."""
    if isinstance(result, RequestError):
        raise refusal_of(result, param)
    if isinstance(result, Exception):
        raise result
    return result


__all__ = ["ClipService", "ServerSettings"]
