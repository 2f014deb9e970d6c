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
    ids = table["image_id"].to_numpy(zero_copy_only=False).astype(str)
    boxes = np.stack([table[name].to_numpy() for name in CORNERS], 1).astype(np.float32)
    order = np.argsort(ids, kind="stable")
    names, first = np.unique(ids[order], return_index=True)
    parts = np.split(boxes[order], first[1:]) if len(names) else []
    return dict(zip(names.tolist(), parts, strict=True))
