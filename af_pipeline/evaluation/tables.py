"""An error breakdown as text, as json and as rows to query."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from af_pipeline.core.text_table import cell, text_table
from af_pipeline.evaluation.coverage import CAUSES
from af_pipeline.evaluation.errors import Breakdown, Floats, Side

_FINE = ("found", "true", "ignored")  # kinds that are no errors

ERRORS = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("side", pa.string()),  # 'object' or 'detection'
        pa.field("kind", pa.string()),  # as defined in af_pipeline.evaluation.errors
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),  # null for objects
        *[pa.field(name, pa.float32()) for name in ("x0", "y0", "x1", "y1")],  # original px
        pa.field("iou", pa.float32()),  # with the box that decided the kind, else the largest
        pa.field("other_label", pa.string()),  # of that box; null where none overlaps
    ]
)


def errors_json(found: Breakdown) -> dict[str, Any]:
    """Counts, AP50 gained and the share of objects in chips, ready for `json.dump`."""
    gains: dict[str, Any] = {"objects": {}, "detections": {}}
    for (side, kind), gain in found.gains.items():
        gains[side][kind] = _by_class(found, gain, _mean(gain))
    covered = None
    if found.covered is not None:
        total = np.bincount(found.objects.items.label, minlength=len(found.classes))
        share = np.where(total > 0, found.covered / np.maximum(total, 1), np.nan)
        every = found.covered.sum() / total.sum() if total.sum() else np.nan
        covered = _by_class(found, share, float(every))
    return {
        "score": found.score,
        "objects": _counts(found, found.objects),
        "detections": _counts(found, found.detections),
        "AP50_gained": gains,
        "objects_in_chips": covered,
    }


def errors_text(found: Breakdown) -> str:
    """Three aligned tables: objects, detections, and what AP50 would gain."""
    at = f"at score >= {found.score:g}"
    return "\n\n".join(
        [
            f"objects, by detections {at}",
            _count_table(found, found.objects),
            f"detections {at}",
            _count_table(found, found.detections),
            _gain_table(found),
        ]
    )


def error_rows(found: Breakdown) -> pa.Table:
    """One row an object or detection that is an error, `ERRORS`, by image in each half."""
    halves = [_rows(found, "object", found.objects), _rows(found, "detection", found.detections)]
    return pa.concat_tables(halves)


def _shown(found: Breakdown, side: Side) -> list[int]:
    """The kinds that can occur: without chips one stands for all the causes."""
    hidden = CAUSES if found.covered is None else ("missed",)
    return [place for place, kind in enumerate(side.kinds) if kind not in hidden]


def _counts(found: Breakdown, side: Side) -> dict[str, Any]:
    counts, shown = side.counts(len(found.classes)), _shown(found, side)

    def named(row: Any) -> dict[str, int]:
        return {side.kinds[place]: int(row[place]) for place in shown}

    each = {name: named(row) for name, row in zip(found.classes, counts, strict=True)}
    return {"overall": named(counts.sum(0)), "per_class": each}


def _count_table(found: Breakdown, side: Side) -> str:
    counts, shown = side.counts(len(found.classes)), _shown(found, side)
    rows = [["class", *(side.kinds[place] for place in shown), "total"]]
    for name, row in zip([*found.classes, "all"], [*counts, counts.sum(0)], strict=True):
        rows.append([name, *(str(row[place]) for place in shown), str(row.sum())])
    return text_table(rows)


def _gain_table(found: Breakdown) -> str:
    rows = [["put right", "of", "number", "AP50 gained"]]
    for (side, kind), gain in found.gains.items():
        whole = found.objects if side == "objects" else found.detections
        number = int((whole.kind == whole.kinds.index(kind)).sum())
        rows.append([kind, side, str(number), cell(_mean(gain), "+.3f")])
    return text_table([*rows, ["AP50 as it is", "", "", cell(_mean(found.ap50), ".3f")]])


def _rows(found: Breakdown, name: str, side: Side) -> pa.Table:
    fine = [place for place, kind in enumerate(side.kinds) if kind in _FINE]
    own = np.flatnonzero(~np.isin(side.kind, fine))
    own = own[np.argsort(side.items.image[own], kind="stable")]
    items = side.items
    columns: dict[str, Any] = {
        "image_id": [found.images[place] for place in items.image[own]],
        "side": [name] * len(own),
        "kind": [side.kinds[place] for place in side.kind[own]],
        "label": [found.classes[place] for place in items.label[own]],
        "score": [None] * len(own) if side.score is None else side.score[own],
        "iou": side.iou[own],
        "other_label": [found.classes[n] if n >= 0 else None for n in side.other[own]],
    }
    columns |= {corner: items.boxes[own, n] for n, corner in enumerate(("x0", "y0", "x1", "y1"))}
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in ERRORS]
    return pa.Table.from_arrays(arrays, schema=ERRORS)


def _by_class(found: Breakdown, values: Floats, overall: float) -> dict[str, Any]:
    """Numbers of all and of each class; None for nan, which json has not."""
    each = [None if np.isnan(value) else float(value) for value in values]
    named = dict(zip(found.classes, each, strict=True))
    return {"overall": None if np.isnan(overall) else float(overall), "per_class": named}


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
