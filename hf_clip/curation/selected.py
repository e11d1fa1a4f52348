"""Rows of a directory of embeddings, selected into another directory of the same kind.

The output has the parts of the source under their names, with fewer rows; a part without a selected row is left out.
Its `_hf_clip.json` has the rule beside what identifies the model, so a stopped run goes on where the same rule is asked
for again, and whatever reads embeddings reads the output too.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..embedding.arrow import as_matrix
from ..embedding.parts import SETTINGS, WHOLE, Shard, check_part, part_places, read_columns, read_settings, write_part
from ..embedding.stores import StoreError
from ..utils.packages import require
from ..utils.places import Place, place_at, reaching, writing

IMAGE, TEXT = "embedding", "text_embedding"


class EmbeddedPart(NamedTuple):
    """One part of a directory of embeddings.

    Args:
        place: The file.
        table: The columns that were asked for, of all rows.
        good: True (rows,) where there is an embedding, and no earlier row has the key.
    """

    place: Place
    table: Any
    good: np.ndarray

    def embeds(self, column: str) -> np.ndarray:
        """Return the embeddings (good rows, dim) of a column; NaN where there is none."""
        if column not in self.table.column_names:
            raise StoreError(f"{self.place} has no column {column}, as others have: embed the images again")
        return as_matrix(self.table[column])[self.good]


class Selection(NamedTuple):
    """Counts of a selection.

    Args:
        rows: The rows of the source that have an embedding.
        kept: Those that were selected.
    """

    rows: int
    kept: int


def open_parts(source: str) -> tuple[Place, dict[str, Any]]:
    """Return the place and the settings of a directory of embeddings.

    Raises:
        StoreError: There is none.
    """
    require("pyarrow", "parquet", "reading embeddings")
    place = place_at(source)
    with reaching(place):
        return place, read_settings(place)


def iter_part_columns(place: Place, columns: Sequence[str] | None = None) -> Iterator[EmbeddedPart]:
    """Yield all parts, the oldest first, with these columns, or with all."""
    import pyarrow.parquet as pq

    seen: set[str] = set()
    sizes: dict[str, int] = {}
    for part in part_places(place):
        with part.fs.open(part.path, "rb") as file:
            schema = pq.read_schema(file)
        needed = list(dict.fromkeys(["key", IMAGE, *(columns or ())]))
        check_part(part, schema, needed, sizes)
        wanted = schema.names if columns is None else needed
        table = read_columns(part, wanted)
        fresh = [key not in seen and not seen.add(key) for key in table["key"].to_pylist()]  # type: ignore[func-returns-value]
        yield EmbeddedPart(part, table, np.array(fresh, bool) & ~np.isnan(as_matrix(table[IMAGE])).any(1))


def parts_digest(place: Place) -> str:
    """Return a digest of the names and sizes of all parts, which changes when rows are added."""
    facts = [(part.path.rpartition("/")[2], part.fs.size(part.path)) for part in part_places(place)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class SelectionTarget(NamedTuple):
    """A directory for selected rows.

    Args:
        place: The directory.
        settings: Those of the source, with the rule and a digest of the source in `selected`.
        begun: The same rule on the same source has begun it.
    """

    place: Place
    settings: dict[str, Any]
    begun: bool

    @property
    def digest(self) -> str:
        """Return a digest of the rule and the source."""
        return hashlib.sha256(json.dumps(self.settings["selected"]).encode()).hexdigest()[:16]

    def begin(self) -> None:
        """Make the directory, unless it is begun; parts of another selection go."""
        if self.begun:
            return
        with reaching(self.place):
            self.place.fs.makedirs(self.place.path, exist_ok=True)
            if self.place.fs.exists((self.place / SETTINGS).path):
                self.place.fs.rm_file((self.place / SETTINGS).path)  # first: parts without it count for nothing
                for part in part_places(self.place):
                    self.place.fs.rm_file(part.path)
            with writing(self.place / SETTINGS) as file:
                file.write(json.dumps(self.settings).encode())


def open_target(source: str, output: str, rule: Mapping[str, Any], restart: bool = False) -> SelectionTarget:
    """Check that the output may hold a selection; nothing is written yet.

    Raises:
        StoreError: The directory holds another selection, or something else.
    """
    origin, settings = open_parts(source)
    place = place_at(output)
    wanted = {**settings, "selected": {**rule, "source": str(origin), "parts": parts_digest(origin)}}
    if place == origin:
        raise StoreError(f"{output} is the source itself: choose another output")
    with reaching(place):
        if place.fs.exists((place / SETTINGS).path):
            theirs = read_settings(place).get("selected")
            if theirs is None:
                raise StoreError(f"{output} holds embeddings of its own: choose another output")
            if theirs != wanted["selected"] and not restart:
                raise StoreError(f"{output} holds another selection: pass --restart, or choose another output")
            return SelectionTarget(place, wanted, theirs == wanted["selected"] and not restart)
        there = place.fs.ls(place.path, detail=False) if place.fs.exists(place.path) else []
        if foreign := [path for path in there if not _name(path).startswith(".")]:
            raise StoreError(f"{output} holds {_name(foreign[0])} and is no selection: choose an empty directory")
    return SelectionTarget(place, wanted, False)


def write_selection(
    source: Place,
    output: Place,
    choose: Callable[[EmbeddedPart], tuple[np.ndarray, Mapping[str, np.ndarray]]],
    shard: Shard = WHOLE,
) -> Selection:
    """Write the chosen rows of each part; a part that is there already is kept as it is.

    Args:
        source: A directory of embeddings.
        output: A directory that `SelectionTarget.begin` made.
        choose: Returns, for a part, which of its good rows to keep, and columns to add, of all its good rows.
        shard: The parts that this run writes: every Nth.
    """
    import pyarrow as pa

    there = {_name(part.path) for part in part_places(output)}
    rows = kept = 0
    parts = tqdm(iter_part_columns(source), desc="parts", unit="part", total=len(part_places(source)), delay=2)
    for number, part in enumerate(parts):
        name = _name(part.place.path)
        if number % shard.total != shard.number - 1:
            continue
        keep, columns = choose(part)
        rows, kept = rows + len(keep), kept + int(keep.sum())
        if name in there or not keep.any():
            continue
        table = part.table.filter(pa.array(part.good)).filter(pa.array(keep))
        for column, values in columns.items():
            if column in table.column_names:
                table = table.drop_columns([column])
            table = table.append_column(column, pa.array(values[keep]))
        write_part(output / name, table)
    return Selection(rows, kept)


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


__all__ = [
    "IMAGE",
    "TEXT",
    "EmbeddedPart",
    "Selection",
    "SelectionTarget",
    "iter_part_columns",
    "open_parts",
    "open_target",
    "parts_digest",
    "write_selection",
]
