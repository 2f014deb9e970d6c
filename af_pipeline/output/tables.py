"""Finished rows as the flat tables of a run's output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from af_pipeline.core.schema import CHIPS, COUNTERS, DETECTIONS, IMAGES, ImageRow, join_detections


def detections_table(rows: Sequence[ImageRow], class_names: Sequence[str]) -> pa.Table:
    """One row a detection, `DETECTIONS`."""
    owner = np.repeat(np.arange(len(rows)), [len(row.detections) for row in rows])
    ids = pa.array([row.image_id for row in rows], pa.string())
    found = join_detections([row.detections for row in rows])
    boxes, labels = found.boxes, found.labels
    names = [class_names[label] for label in labels]
    columns = [
        ids.take(pa.array(owner, pa.int64())),
        pa.array(labels, pa.int32()),
        pa.array(names, pa.string()),
        pa.array(found.scores, pa.float32()),
        *[pa.array(boxes[:, i], pa.float32()) for i in range(4)],
        pa.array(found.scales, pa.int8()),
    ]
    return pa.Table.from_arrays(columns, schema=DETECTIONS)


def images_table(rows: Sequence[ImageRow], run_id: str) -> pa.Table:
    """One row an image, `IMAGES`."""
    records = [
        {
            "image_id": row.image_id,
            "uri": row.uri,
            "version": row.version,
            "width": row.width,
            "height": row.height,
            "status": "error" if row.error else "ok",
            "error": row.error,
            "num_detections": len(row.detections),
            "num_chips": sum(row.ledger.chips[1:]),
            "num_refused": sum(row.ledger.refused),
            "pixels_processed": sum(row.ledger.pixels),
            "pixels_padded": sum(row.ledger.padded),
            "pixels_pyramid": row.ledger.pixels_pyramid,
            "bytes": row.bytes,
            "run_id": run_id,
            **{name: getattr(row.ledger, name) for name in COUNTERS},
            "decode_ms": row.ledger.decode_ms,
            "forward_ms": row.ledger.forward_ms,
            "pixels_per_scale": row.ledger.pixels,
            "chips_per_scale": row.ledger.chips,
        }
        for row in rows
    ]
    return pa.Table.from_pylist(records, schema=IMAGES)


def chips_table(rows: Sequence[ImageRow]) -> pa.Table:
    """One row a FocusChip, `CHIPS`; the coarse look at the whole image is not a FocusChip."""
    records = [
        {
            "image_id": row.image_id,
            "scale": chip.scale,
            "lane": chip.lane,
            **dict(zip(("x0", "y0", "x1", "y1"), chip.box, strict=True)),
            "focus": chip.focus,
            "gain": chip.gain,
        }
        for row in rows
        for chip in row.chips
        if chip.scale > 0
    ]
    return pa.Table.from_pylist(records, schema=CHIPS)
