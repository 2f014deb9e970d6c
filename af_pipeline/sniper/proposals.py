"""Proposals of a first detector, read back from an index run for negative chip mining."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

CORNERS = ("x0", "y0", "x1", "y1")


def load_proposals(uri: str) -> dict[str, NDArray[np.float32]]:
    """Boxes float32 [P, 4] (original px, half-open) by image_id.

    ``uri``: the ``detections`` folder of a run of jobs/mine.py, or any Parquet with the columns
    image_id, x0, y0, x1, y1. Raises ValueError naming it where it cannot be read as such.
    """
    try:
        table = ds.dataset(uri, format="parquet").to_table(columns=["image_id", *CORNERS])
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"data.proposals={uri} cannot be read ({' '.join(str(error).split())}): "
            "give the detections folder that jobs/mine.py names"
        ) from error
    ids = table["image_id"].combine_chunks().dictionary_encode()
    names = ids.dictionary.to_pylist()
    codes = ids.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    boxes = np.empty((len(codes), 4), np.float32)
    for column, name in enumerate(CORNERS):
        boxes[:, column] = table[name].to_numpy()[order]
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    parts = np.split(boxes, ends[:-1]) if names else []
    return dict(zip(names, parts, strict=True))
