"""Progress of an index run: stages count into a small actor, a thread of the driver shows it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from af_pipeline.indexing.meter import Counter

REFRESH_S = 0.5
COUNTER = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
LINE_EVERY_S = 10.0  # between progress lines where the output is no terminal


@contextmanager
def shown_progress(total: int, stages: Sequence[str], console: Console) -> Iterator[Any]:
    """Yield the handle of a `Counter` of ``stages`` and show its counts until the block ends."""
    # Beside the driver: a counter on a worker node would go down with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    held = ray.put(list(stages))
    # Ray says once a process, on stderr and past Python's logging, that an actor which may restart
    # has arguments in the object store. Ray Data starts all of its actors so, and holds the objects
    # as long as a graph runs, so that there is nothing to do about it: said here, to nobody.
    with _no_stderr():
        kind: Any = ray.remote(**COUNTER)(Counter)
        counter = kind.options(scheduling_strategy=here).remote(held)
    ended = threading.Event()
    show = _show_bar if console.is_terminal else _show_lines
    thread = threading.Thread(target=show, args=(counter, total, ended, console), daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        ended.set()
        thread.join()
        ray.kill(counter)


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Let what this process writes to stderr go nowhere, that of libraries in C++ too."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _read(counter: Any, total: int) -> tuple[int, int, int]:
    images, errors, detections = ray.get(counter.read.remote())
    return min(images, total), errors, detections


def _show_bar(counter: Any, total: int, ended: threading.Event, console: Console) -> None:
    columns = (
        TextColumn("indexing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[found]}"),
    )
    began = time.perf_counter()
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task("", total=total, rate="", found="")
        while True:
            last = ended.wait(REFRESH_S)
            images, errors, detections = _read(counter, total)
            rate = images / (time.perf_counter() - began)
            found = f"{detections} detections, {errors} errors"
            bar.update(task, completed=images, rate=f"{rate:.2f} images/s", found=found)
            if last:
                return


def _show_lines(counter: Any, total: int, ended: threading.Event, console: Console) -> None:
    began, shown = time.perf_counter(), -1
    while True:
        last = ended.wait(LINE_EVERY_S)
        images, errors, detections = _read(counter, total)
        seconds = time.perf_counter() - began
        if images != shown or not last:
            rate = images / seconds
            left = f"{(total - images) / rate:.0f} s left" if images else "starting"
            console.print(
                f"indexing {images}/{total}  {rate:.2f} images/s  {left}  "
                f"{detections} detections, {errors} errors",
                highlight=False,
            )
            shown = images
        if last:
            return
