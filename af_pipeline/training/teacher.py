"""What a detector finds in its whole pyramid, as the labels of a focus network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from af_pipeline.core.boxes import iou_matrix
from af_pipeline.core.focus import BACKGROUND, FOCUS, IGNORE, STRIDE, paint
from af_pipeline.core.schema import Detections, ImageRow, table_to_rows
from af_pipeline.core.stacking import StackRule, suppress
from af_pipeline.data.manifest import SourceImage
from af_pipeline.indexing.index import index
from af_pipeline.output.folder import OutputFolder
from af_pipeline.settings.index import IndexConfig, OutputConfig

CONFIDENT = 0.5  # score from which a detection of the pyramid is an object
FOUND = 0.25  # score from which a scale finds an object
UNSURE = 0.1  # score from which what the pyramid finds may be an object
SAME = 0.7  # IoU with an object from which a scale finds it well enough


@dataclass(frozen=True)
class Taught:
    """One image: ``objects`` of the pyramid, stacked, and ``raw`` what each scale found of them."""

    image_id: str
    uri: str
    width: int
    height: int
    objects: Detections
    raw: Detections


def teach(
    config: IndexConfig, images: Iterable[SourceImage], output: str, console: Console
) -> list[Taught]:
    """Run the whole pyramid over ``images`` as an index job; images with errors are left out.

    Ray must be initialised. Goes on where it was stopped; raises what `index` raises.
    """
    outcome = index(pyramid_config(config, output), console=console, images=images)
    folder = OutputFolder.of_run(outcome.uri)
    rows = [row for part in folder.read_rows(folder.parts("rows")) for row in table_to_rows(part)]
    rows.sort(key=lambda row: row.image_id)  # parts come in the order in which they were done
    return [taught(row, config.stack) for row in rows if not row.error]


def pyramid_config(config: IndexConfig, output: str) -> IndexConfig:
    """Every scale whole, and what each finds kept beside what the others find."""
    keep_all = StackRule(
        method="hard",
        iou=1.0,
        min_score=min(UNSURE, config.stack.min_score),
        valid_ranges=config.stack.valid_ranges,
        border=config.stack.border,
        max_detections=100_000,
    )
    return config.model_copy(
        update={
            "mode": "pyramid",
            "stack": keep_all,
            "focus": config.focus.model_copy(update={"network": None, "budget": None}),
            "output": OutputConfig(uri=output, chips=False),
            "guarantee": None,
        }
    )


def taught(row: ImageRow, rule: StackRule) -> Taught:
    """A row whose scales were not stacked -> its objects and what was found of them."""
    raw = row.detections
    kept, scores = suppress(raw.boxes, raw.scores, raw.labels, replace(rule, min_score=UNSURE))
    objects = replace(raw.select(kept), scores=scores)
    return Taught(row.image_id, row.uri, row.width, row.height, objects, raw)


def labels_of(
    image: Taught, scale: int, size: tuple[int, int], finest: bool = False
) -> NDArray[np.int8]:
    """Labels of the focus network for an image seen at ``scale`` in ``size`` (height, width).

    int8 [2, ceil(h/16), ceil(w/16)] in {-1, 0, 1}. Channel 0: objects that no scale up to this one
    finds, and so a finer one must; the paper's FocusPixels (§3.1) are those of objects small by
    their size, which presumes a detector trained for that. Channel 1: objects that this scale
    finds. -1 where the pyramid itself is not sure, and in channel 0 of the ``finest`` scale.
    """
    height, width = size
    cells = np.full((2, -(-height // STRIDE), -(-width // STRIDE)), BACKGROUND, np.int8)
    objects, raw = image.objects, image.raw
    factors = np.array([width / image.width, height / image.height] * 2)
    boxes = objects.boxes * factors
    sure = objects.scores >= CONFIDENT
    here = found_by(objects, raw.select((raw.scores >= FOUND) & (raw.scales == scale)))
    before = found_by(objects, raw.select((raw.scores >= FOUND) & (raw.scales <= scale)))
    for channel, wanted in enumerate((~before, here)):
        paint(cells[channel], boxes[wanted & ~sure], IGNORE)
        paint(cells[channel], boxes[wanted & sure], FOCUS)
    if finest:
        cells[0] = IGNORE
    return cells


def found_by(objects: Detections, found: Detections) -> NDArray[np.bool_]:
    """Which objects [N] a detection of their class meets with an IoU of `SAME`."""
    known = np.zeros(len(objects), bool)
    for label in np.unique(objects.labels):
        own = np.flatnonzero(objects.labels == label)
        near = found.boxes[found.labels == label]
        if len(near):
            known[own] = (iou_matrix(objects.boxes[own], near) >= SAME).any(1)
    return known


def confident(images: Sequence[Taught]) -> int:
    """How many objects there are to learn from."""
    return sum(int((one.objects.scores >= CONFIDENT).sum()) for one in images)
