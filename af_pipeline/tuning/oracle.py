"""What faultless focus maps would allow, and how near those of a detector come.

Source: AutoFocus (ICCV 2019) §5.2: Figure 5 (bound on the speed-up) and Figure 6 (recall of
FocusPixels and FocusChips).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import box_area, intersection_area
from af_pipeline.core.chips import step_price
from af_pipeline.core.focus import STRIDE, ChipRule, FocusRule, chips_from_map, focus_labels
from af_pipeline.core.plan import Plan
from af_pipeline.core.scales import scaled_size
from af_pipeline.core.schema import ImageRow, no_detections
from af_pipeline.tuning.replay import Record, cascade_of

MIN_SIZES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # network px of the map's scale
DILATIONS = (1, 3)
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WHOLE = 0.999  # share of a box that must lie in a chip, to rounding


def true_maps(
    boxes: NDArray, crowd: NDArray, height: int, width: int, plan: Plan, rule: FocusRule
) -> tuple[NDArray[np.float32], ...]:
    """Ground-truth FocusPixels of every scale of an image, as maps of 0 and 1.

    boxes [N, 4] original px, crowd bool [N]; ``height`` x ``width`` original px.
    """
    maps = []
    for scale in plan.scales:
        factor = scale.factor_for(height, width)
        size = scaled_size(height, width, factor)
        labels = focus_labels(boxes * factor, *size, rule, crowd)
        maps.append((labels == 1).astype(np.float32))
    return tuple(maps)


def ideal_row(record: Record, maps: Sequence[NDArray[np.float32]], plan: Plan) -> ImageRow:
    """The account of an image whose focus maps are ``maps`` of 0 and 1; no detections."""
    empty = replace(record, found=no_detections())
    return cascade_of(empty, replace(with_rule(plan, threshold=0.5), budget=None), maps)


def mean_pixels(rows: Sequence[ImageRow]) -> float:
    """Mean network px an image, padding included."""
    return float(np.mean([sum(row.ledger.pixels) + sum(row.ledger.padded) for row in rows]))


def with_rule(plan: Plan, **changes: Any) -> Plan:
    """The plan with other values of `ChipRule` at every step."""
    rules = tuple(
        replace(rule, **changes) if isinstance(rule, ChipRule) else rule for rule in plan.rules
    )
    return replace(plan, rules=rules)


def speed_up_bound(
    records: Sequence[Record],
    maps: Sequence[Sequence[NDArray[np.float32]]],
    plan: Plan,
    pyramid_px: float,
) -> list[dict[str, Any]]:
    """Figure 5: what ground-truth FocusPixels save, over the least chip side.

    One record a dilation and ``min_size`` (network px of the map's scale, no further context):
    mean ``pixels`` an image and ``speed_up`` against ``pyramid_px``.
    """
    out = []
    for dilation in DILATIONS:
        for min_size in MIN_SIZES:
            changed = with_rule(plan, dilation=dilation, min_size=min_size, context=0)
            pairs = zip(records, maps, strict=True)
            pixels = mean_pixels([ideal_row(record, own, changed) for record, own in pairs])
            out.append(
                {
                    "dilation": dilation,
                    "min_size": min_size,
                    "pixels": pixels,
                    "speed_up": pyramid_px / pixels,
                }
            )
    return out


def focus_recall(
    records: Sequence[Record], references: Sequence[Sequence[NDArray]], plan: Plan, reference: str
) -> list[dict[str, Any]]:
    """Figure 6: recall of objects over the area of FocusPixels and FocusChips.

    ``references``: per image and step boxes [N, 4], original px, of the objects that the next
    scale answers for; ``reference``: what they are called. The map is that of the whole image. An
    object counts as recalled by FocusPixels when any of its cells is above the threshold, by
    FocusChips when it lies whole in one chip.
    """
    out = []
    for step, rule in enumerate(plan.rules):
        if not isinstance(rule, ChipRule):
            continue
        for threshold in THRESHOLDS:
            sums = np.zeros(5)  # cells, cells above, px of chips / px, touched, whole
            objects = 0
            for record, boxes in zip(records, references, strict=True):
                sums += _recalled(
                    record, boxes[step], step, replace(rule, threshold=threshold), plan
                )
                objects += len(boxes[step])
            shared = {"scale": step, "reference": reference, "threshold": threshold}
            cells, above, chips, touched, whole = sums
            for kind, area, hits in (
                ("FocusPixels", above, touched),
                ("FocusChips", chips, whole),
            ):
                out.append(
                    {**shared, "of": kind, "area": area / cells, "recall": hits / max(1, objects)}
                )
    return out


def _recalled(
    record: Record, boxes: NDArray, step: int, rule: ChipRule, plan: Plan
) -> NDArray[np.float64]:
    """Cells, cells above the threshold, cells' worth of chips, boxes touched, boxes whole."""
    factor = plan.scales[step].factor_for(record.height, record.width)
    size = scaled_size(record.height, record.width, factor)
    focus = record.maps[step]
    row = ImageRow(record.image_id, "", record.width, record.height)
    rects, *_ = chips_from_map(focus, rule, size, step_price(row, step, plan))
    covered = np.zeros(size, bool)
    for x0, y0, x1, y1 in rects:
        covered[y0:y1, x0:x1] = True
    scaled = boxes * factor
    touched = 0
    above = focus >= rule.threshold
    for x0, y0, x1, y1 in scaled / STRIDE:
        part = above[max(0, int(y0)) : -int(-y1 // 1), max(0, int(x0)) : -int(-x1 // 1)]
        touched += bool(part.any())
    inside = 0
    if len(boxes) and len(rects):
        share = intersection_area(scaled, rects.astype(np.float64)) / box_area(scaled)[:, None]
        inside = int((share >= WHOLE).any(1).sum())
    return np.array([focus.size, above.sum(), covered.sum() / STRIDE**2, touched, inside], float)
