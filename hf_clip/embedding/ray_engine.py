"""The embedding engine's executor for a Ray cluster, or for all cores and GPUs of this machine.

Ray decodes and computes in pools of their own, restarts workers that die, and has each part written by a worker, so the
driver sees keys and counts only. Only finished parts tell which images are done, as on one machine.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from ..data.sources import Located
from ..utils.packages import require
from ..utils.places import place_at
from ..utils.text import as_line
from .arrow import SURPRISES, OnArrow, batch_of, part_table
from .engine import EmbedOptions, Pending
from .parts import PartStore, without_errors, write_part
from .report import Report

# images whose keys the driver holds at a time, and those of one task
WINDOW_ROWS, BLOCK_BATCHES = 100_000, 4
# shares of a core for actors that wait more than they compute: together with the models they must fit two cores
MODEL_CPUS, DECODE_CPUS, WRITE_CPUS = 0.75, 0.2, 0.1


def run_on_ray(
    pending: Pending, store: PartStore, options: EmbedOptions, check: Callable[[], object], address: str | None = None
) -> Generator[Report, None, None]:
    """Embed images on a cluster; yield a report of each part that a worker has written.

    Args:
        pending: The images.
        store: The directory, opened, at a place that all nodes see.
        options: How workers load and run the model.
        check: Refuses another model than the directory's; it is called if there is anything to embed.
        address: The cluster; a local one unless given.

    Raises:
        ConnectionError: There is no cluster at the address.
        MissingPackageError: Ray is not installed.
    """
    require("ray", "ray", "--engine ray")
    windows = _batched(pending, WINDOW_ROWS)
    first = next(windows, None)
    if first is None:
        return
    check()
    with _cluster(address):
        for line in _results(first, pending, store, options):
            yield Report.from_json(line)
        for window in windows:
            for line in _results(window, pending, store, options):
                yield Report.from_json(line)


def _batched(images: Iterable[Located], size: int) -> Iterator[list[Located]]:
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        yield batch


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


def _results(window: list[Located], pending: Pending, store: PartStore, options: EmbedOptions) -> Iterator[str]:
    """Yield the report of each part that a window of images becomes."""
    import ray

    # not above: a run with nothing new should not wait for PyTorch
    from .callables import ImageEmbedder, ImagePreprocessor, TextEmbedder

    blocks = [_block(images, pending.source.columns) for images in _batched(window, options.batch_size * BLOCK_BATCHES)]
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
            "workers": options.workers,
            "exif": options.exif,
            "decode": options.decode,
            "count_surprises": True,
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
        fn_constructor_args=(
            str(store.place),
            prefix,
            pending.source.columns,
            store.settings["row_dtype"],
            store.drop_errors,
        ),
        batch_size=store.part_rows,
        batch_format="pyarrow",
        compute=pool(min_size=1, max_size=1 + cpus // 32),
        num_cpus=WRITE_CPUS,
    )
    for row in data.iter_rows():
        yield row["report"]


def _block(images: list[Located], columns: Mapping[str, Any]) -> Any:
    """Make an Arrow table of references to images, and of their values in the source's columns."""
    import pyarrow as pa

    text, integer = pa.string(), pa.int64()
    fields = {"source": pa.binary(), "name": text, "key": text, "stamp": text, "offset": integer, "size": integer}
    fields |= {"column": text, "group": integer, "row": integer, "refused": text}
    kinds = {"key": text, "path": text, "version": text, **columns}
    batch = batch_of(images, columns)
    batch["path"] = list(map(as_line, batch["path"]))
    arrays = {name: pa.array(values, kinds[name]) for name, values in batch.items()}
    return pa.table({**arrays, "image": pa.array([image.as_row() for image, _ in images], pa.struct(fields))})


class PartWriter:
    """Write a batch as one part, named by its keys, so that a repeated task replaces its own part.

    Workers need no PyTorch for it.

    Args:
        output: The directory, at a path or an address that all nodes see.
        prefix: The beginning of the names of this run's parts.
        columns: The Arrow types of the source's columns.
        row_dtype: The dtype of stored embeddings.
        drop_errors: Write no rows for images that failed.
    """

    def __init__(self, output: str, prefix: str, columns: Mapping[str, Any], row_dtype: str, drop_errors: bool = False):
        self.output, self.prefix, self.columns, self.row_dtype = output, prefix, columns, row_dtype
        self.drop_errors = drop_errors

    def __call__(self, table: Any) -> Any:
        """Return a report of the part, as one row.

        Args:
            table: Rows with embeddings and errors.
        """
        import pyarrow as pa

        found = set(SURPRISES) & set(table.column_names)
        rotated, sixteen_bits = (sum(table[name].to_pylist()) if name in found else 0 for name in SURPRISES)
        table = part_table(table, self.columns, self.row_dtype)
        keys = "\0".join(sorted(table["key"].to_pylist()))
        digest = hashlib.blake2b(keys.encode(), digest_size=8).hexdigest()
        report = Report.of(table["path"].to_pylist(), table["error"].to_pylist())
        report.rotated, report.sixteen_bits = rotated, sixteen_bits
        rows = without_errors(table) if self.drop_errors else table
        if len(rows):
            write_part(place_at(self.output) / f"{self.prefix}{digest}.parquet", rows)
        return pa.table({"report": [report.as_json()]})


__all__ = ["PartWriter", "run_on_ray"]
