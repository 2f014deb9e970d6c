"""What watches over a graph while it runs: when it must stop, and what keeps the driver small.

Ray Data's own means would hold the whole list as blocks in the driver, since it bounds queues by
bytes and a block of the list has next to none, and would keep a record of every block for its
statistics, 10 KB a block in all. Without both, one graph can do any number of images, and its
actors live as long as the run.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.data import Dataset
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer

from af_pipeline.indexing.meter import STOPPED, GraphError

LOOK_EVERY_S = 1.0
BLOCKS_AHEAD = 1_000  # what a stage may have waiting before the next one
LISTS_AHEAD = 2  # parts of the list read before they are cut into blocks
RECORDS_KEPT = 1_000  # of the statistics of each stage


class TooManyErrors(GraphError):
    """A larger share of the images failed than may."""


class Watch(ExecutionCallback):
    """Ends a graph for what its `meter.Counter` says; Ray Data makes it from the class alone."""

    counter: Any = None
    max_error_rate = 1.0
    done = 0

    def __init__(self) -> None:
        self.asked: Any = None
        self.next_look = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """As Ray Data asks, many times a second; never waits for the answer."""
        for operator in executor._topology:
            records = getattr(operator, "_output_blocks_stats", [])
            if len(records) > RECORDS_KEPT:
                records.clear()
        if self.counter is None or time.monotonic() < self.next_look:
            return
        if self.asked is None:
            self.asked = self.counter.verdict.remote(self.max_error_rate, self.done)
        if not ray.wait([self.asked], timeout=0)[0]:
            return
        verdict = ray.get(self.asked)
        self.asked, self.next_look = None, time.monotonic() + LOOK_EVERY_S
        heed(*verdict)


def heed(fault: str, errors: str) -> None:
    """End the graph where `meter.Counter.verdict` says so."""
    if fault:
        raise GraphError(STOPPED.format(fault))
    if errors:
        raise TooManyErrors(
            f"{errors}; mend the cause and run the same command again, which tries failed images "
            "again, or raise max_error_rate"
        )


class FewAhead(BackpressurePolicy):
    """No stage runs far ahead of the next one."""

    def can_add_input(self, op: Any) -> bool:
        """Whether a stage may take another block."""
        return not self._is_ahead(op)

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """0 stops a stage that has far more blocks out than the next one has taken."""
        return 0 if self._is_ahead(op) else None

    def _is_ahead(self, op: Any) -> bool:
        reads = any(isinstance(source, InputDataBuffer) for source in op.input_dependencies)
        limit = LISTS_AHEAD if reads else BLOCKS_AHEAD
        return bool(self._topology[op].output_queue.num_blocks >= limit)


def watched(rows: Dataset, counter: Any, max_error_rate: float, done: int) -> Dataset:
    """The dataset, to be executed under the eyes of a `Watch`; ``done``: images done before."""
    own = {"counter": counter, "max_error_rate": max_error_rate, "done": done}
    kind = type("Watch", (Watch,), own)
    rows.context.custom_execution_callback_classes = [kind]
    policies = [*ENABLED_BACKPRESSURE_POLICIES, FewAhead]
    rows.context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    return rows
