"""The layouts of other tools, written from finished parts."""

import numpy as np

from ..utils.places import Place, writing
from .arrow import as_matrix
from .parts import iter_parts

FILE_ROWS = 100_000


def write_clip_retrieval(place: Place, text_column: str | None) -> None:
    """Write img_emb/img_emb_N.npy (float16), metadata/metadata_N.parquet and, with captions, text_emb/text_emb_N.npy.

    Row i of the Nth files belongs to one image, as in clip-retrieval, embedding_reader and autofaiss.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("img_emb", "text_emb", "metadata"):
        if place.fs.exists((place / name).path):
            place.fs.rm((place / name).path, recursive=True)
    for number, (columns, rows) in enumerate(iter_parts(place, FILE_ROWS)):
        kinds = {"img_emb": rows}
        metadata = {"image_path": columns["path"]}
        if text_column is not None:
            # the embedding of an image without a caption is zero there
            kinds["text_emb"] = np.nan_to_num(as_matrix(columns["text_embedding"]))
            metadata["caption"] = columns[text_column]
        for kind, values in kinds.items():
            place.fs.makedirs((place / kind).path, exist_ok=True)
            with writing(place / kind / f"{kind}_{number}.npy") as file:
                np.save(file, values.astype(np.float16))
        place.fs.makedirs((place / "metadata").path, exist_ok=True)
        with writing(place / "metadata" / f"metadata_{number}.parquet") as file:
            pq.write_table(pa.table(metadata), file)


__all__ = ["write_clip_retrieval"]
