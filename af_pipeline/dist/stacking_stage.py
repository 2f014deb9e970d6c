"""The last stage of the index graph, and failed rows; needs no torch, so its actors are small."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from af_pipeline.cascade import stack
from af_pipeline.data.secrets import redact_text
from af_pipeline.dist.meter import ErrorKinds, StageMeter
from af_pipeline.plans import Plan
from af_pipeline.schema import ImageRow, rows_to_table, table_to_rows

STACK = "Stack"
NUMBER = re.compile(r"\d+")


def fail(row: ImageRow, message: str) -> None:
    """Mark a row as failed: one line of reason, no detections, no chips."""
    fresh = ImageRow(row.image_id, row.uri)
    text = redact_text(" ".join(message.split()))[:500].encode(errors="backslashreplace").decode()
    row.error = text or "unknown error"
    row.detections, row.chips, row.candidates = fresh.detections, [], []


def kinds_of(rows: Sequence[ImageRow]) -> ErrorKinds:
    """The errors of ``rows``; messages that differ in numbers and names of images are one kind."""
    kinds: ErrorKinds = {}
    for row in rows:
        if row.error:
            kind = NUMBER.sub("#", row.error.replace(row.uri, "").replace(row.image_id, ""))
            count, example = kinds.get(kind, (0, f"{row.image_id}: {row.error}"))
            kinds[kind] = (count + 1, example)
    return kinds


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
            found = sum(len(row.detections) for row in rows)
            self.counter.add.remote(len(rows), kinds_of(rows), found)
        return rows_to_table(rows, stored=True)


def stage_class(base: type, name: str) -> type:
    """A subclass of ``base`` called ``name``: Ray Data tells stages apart by class name only."""
    return type(name, (base,), {"__doc__": base.__doc__})
