"""A focus map out of weak detections, for a detector that predicts none.

Not in the AutoFocus paper: what a detector takes for an object at a low score and finds small is
worth a closer look. No training; any detector can do it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_side
from af_pipeline.core.focus import STRIDE


def weak_focus(
    boxes: NDArray, scores: NDArray, height: int, width: int, below: float
) -> NDArray[np.float32]:
    """The highest score of a small detection that meets each cell, 0 where none does.

    boxes [N, 4] and ``below``, the side from which on an object is large enough, in network px of
    the chip of ``height`` x ``width``; scores [N]. Returns float32 [ceil(h/16), ceil(w/16)].
    """
    focus = np.zeros((-(-height // STRIDE), -(-width // STRIDE)), np.float32)
    small = np.flatnonzero(box_side(boxes) < below)
    low = (np.maximum(boxes[:, :2], 0) // STRIDE).astype(np.int64)
    high = -(-np.maximum(boxes[:, 2:], 0) // STRIDE).astype(np.int64)
    for i in small:
        part = focus[low[i, 1] : high[i, 1], low[i, 0] : high[i, 0]]
        np.maximum(part, scores[i], out=part)
    return focus
