"""The last stage of the index graph, and failed rows; needs no torch, so its actors are small."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from af_pipeline.cascade import stack
from af_pipeline.data.secrets import redact_text
from af_pipeline.dist.meter import StageMeter
from af_pipeline.plans import Plan
from af_pipeline.schema import ImageRow, rows_to_table, table_to_rows

STACK = "Stack"


def fail(row: ImageRow, message: str) -> None:
    """Mark a row as failed: one line of reason, no detections, no chips."""
    fresh = ImageRow(row.image_id, row.uri)
    text = redact_text(" ".join(message.split()))[:500].encode(errors="backslashreplace").decode()
    row.error = text or "unknown error"
    row.detections, row.chips, row.candidates = fresh.detections, [], []


class StackStage:
    """Focus stacking and the stored form of the rows; counts where there is a counter."""

    def __init__(self, plan: Plan, counter: Any = None, alone: bool = False) -> None:
        self.plan, self.counter = plan, counter
        self.meter = StageMeter(STACK, counter, alone)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `ROW` in, of `STORED_ROW` out."""
        self.meter.begin(table)
        rows = table_to_rows(table)
        for row in rows:
            if row.error:
                continue
            try:
                stack(row, self.plan.stack)
            except Exception as error:
                fail(row, f"stacking failed: {error!r}")
        self.meter.end({})
        if self.counter is not None:
            errors = sum(1 for row in rows if row.error)
            found = sum(len(row.detections) for row in rows)
            self.counter.add.remote(len(rows), errors, found)
        return rows_to_table(rows, stored=True)


def stage_class(base: type, name: str) -> type:
    """A subclass of ``base`` called ``name``: Ray Data tells stages apart by class name only."""
    return type(name, (base,), {"__doc__": base.__doc__})
