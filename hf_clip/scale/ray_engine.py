"""Embed a source into a directory of parts on a Ray cluster, or on a local one.

Ray decodes and computes in pools of their own, restarts workers that die, and has each part written by a worker, so the
driver sees keys and counts only. What is done is known from finished parts alone, as on one machine.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ..embedding.parts import PART_ROWS, PartStore
from ..utils.packages import require
from .arrow import OnArrow
from .report import MAX_NAMED, Report
from .rows import batch_of, batched
from .run import Bar, Pending, StrictError
from .sources import Source
from .writer import PartWriter

# images whose keys the driver holds at a time, and those of one task
WINDOW_ROWS, BLOCK_BATCHES = 100_000, 4
# shares of a core for what waits more than it computes: together with the models they must fit two cores
MODEL_CPUS, DECODE_CPUS, WRITE_CPUS = 0.75, 0.2, 0.1


@dataclass(frozen=True)
class RayOptions:
    """What workers need to load a model, and where they are.

    Args:
        model: A folder that all nodes see, or a Hub id.
        batch_size: Images per pass through the model.
        normalize: Scale embeddings to length 1.
        device: The device of each worker; its GPU if there is one unless given.
        dtype: The dtype to compute in.
        optimize: Optimize the model for inference.
        trust_remote_code: Run code that comes with the repository.
        text_column: The column of captions to embed.
        address: The cluster; a local one unless given.
    """

    model: str
    batch_size: int = 32
    normalize: bool = True
    device: str | None = None
    dtype: str = "float32"
    optimize: bool = False
    trust_remote_code: bool = False
    text_column: str | None = None
    address: str | None = None


def run_on_ray(
    source: Source,
    store: PartStore,
    options: RayOptions,
    check: Callable[[], object],
    bar: Bar,
    *,
    strict: bool = False,
    retry_errors: bool = False,
    part_rows: int = PART_ROWS,
) -> Report:
    """Embed what is missing on a cluster; other arguments and the result are those of `run.run`.

    Args:
        source: The images.
        store: The directory, opened.
        options: What workers need.
        check: Refuses another model than the directory's; it is called if there is anything to embed.
        bar: Shows progress.
        strict: Stop at the first image that cannot be read.
        retry_errors: Try images again that failed in an earlier run.
        part_rows: The rows of a part.

    Raises:
        StrictError: An image cannot be read, and `strict` is on.
        MissingPackageError: Ray is not installed.
    """
    require("ray", "ray", "--engine ray")
    pending, report, told = Pending(source, store, retry_errors), Report(), 0
    with ExitStack() as stack:
        for number, window in enumerate(batched(pending, WINDOW_ROWS)):
            if number == 0:
                check()
                stack.enter_context(_cluster(options.address))
            bar.update(pending.kept - told)
            told = pending.kept
            for line in _results(window, source, store, options, part_rows):
                bar.update(_add(report, line))
                if report.errors:
                    bar.set_postfix({"failed": sum(report.errors.values())}, refresh=False)
                    if strict:
                        raise StrictError(report.skipped())
    bar.update(pending.kept - told)
    report.kept, report.broken = pending.kept, pending.broken
    report.dropped = pending.finish(report.embedded + sum(report.errors.values()))
    return report


def _add(report: Report, line: str) -> int:
    """Add what a writer tells to a report, and return how many rows it wrote."""
    rows, embedded, errors, failed = json.loads(line)
    report.embedded += embedded
    report.errors.update(errors)
    report.failed = [*report.failed, *failed][:MAX_NAMED]
    return rows


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster; one that was started here is stopped again."""
    import ray

    started = not ray.is_initialized()
    if started:
        local: dict[str, Any] = {} if address else {"include_dashboard": False}
        # workers that only write need no torch
        local["runtime_env"] = {"env_vars": {"HF_CLIP_LAZY": "1"}}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConnectionError(f"there is no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        if started:
            ray.shutdown()


def _results(window: list[Any], source: Source, store: PartStore, options: RayOptions, part_rows: int) -> Iterator[str]:
    """Yield a line for each part that a window of items becomes."""
    import pyarrow as pa
    import ray

    # not above: a run with nothing new should not wait for PyTorch
    from .callables import ImageEmbedder, ImagePreprocessor, TextEmbedder

    kinds = {name: pa.string() for name in ("key", "path", "version", "image")} | dict(source.columns)
    batches = [batch_of(items, source.columns) for items in batched(window, options.batch_size * BLOCK_BATCHES)]
    blocks = [
        pa.table({name: pa.array(values.tolist(), kinds[name]) for name, values in batch.items()}) for batch in batches
    ]
    gpus = 0 if options.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    pool = ray.data.ActorPoolStrategy
    model = os.path.abspath(options.model) if os.path.isdir(options.model) else options.model
    shared = {"device": options.device, "dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    common = {"batch_size": options.batch_size, "batch_format": "pyarrow"}
    data = ray.data.from_arrow(blocks).map_batches(
        OnArrow,
        fn_constructor_kwargs={
            "step": ImagePreprocessor,
            "model": model,
            "trust_remote_code": options.trust_remote_code,
        },
        compute=pool(min_size=1, max_size=cpus if gpus else max(1, cpus // 2)),
        num_cpus=1 if gpus else DECODE_CPUS,
        **common,
    )
    data = data.map_batches(
        OnArrow,
        fn_constructor_kwargs={
            "step": ImageEmbedder,
            "model": model,
            "batch_size": options.batch_size,
            "normalize": options.normalize,
            "optimize": options.optimize,
            **shared,
        },
        compute=pool(size=gpus or cpus),
        num_cpus=WRITE_CPUS if gpus else MODEL_CPUS,
        num_gpus=1 if gpus else 0,
        **common,
    )
    if options.text_column is not None:
        data = data.map_batches(
            OnArrow,
            fn_constructor_kwargs={
                "step": TextEmbedder,
                "model": model,
                "column": options.text_column,
                "normalize": options.normalize,
                **shared,
            },
            compute=pool(size=1),
            num_cpus=WRITE_CPUS,
            **common,
        )
    prefix = store.part_name("").removesuffix(".parquet")
    # a process that stays: tasks would fill the cores that a restarted model needs
    data = data.map_batches(
        PartWriter,
        fn_constructor_args=(str(store.place), prefix, source.columns, store.settings["row_dtype"]),
        batch_size=part_rows,
        batch_format="pyarrow",
        compute=pool(min_size=1, max_size=1 + cpus // 32),
        num_cpus=WRITE_CPUS,
    )
    for row in data.iter_rows():
        yield row["report"]


__all__ = ["RayOptions", "run_on_ray"]
