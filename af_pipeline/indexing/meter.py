"""What the stages of a graph did: images, chips, batches, busy and idle time, queues.

Every stage counts for itself and sends its sums to one small actor, `Counter`, once a block; a
thread of the driver shows them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from af_pipeline.core.cascade import Prediction, Predictor
from af_pipeline.core.lanes import Lane, canvas_sides
from af_pipeline.core.plan import Plan

JUDGED_FROM = 200  # images from which on the share of failed ones counts
FAULTS_AN_ACTOR = 5  # restarts with which a passing fault of a device is over, or none is
MOST_KINDS = 1_000  # bounds the memory of the counter
REFRESH_S = 0.5
COUNTER: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
LINE_EVERY_S = 10.0  # between progress lines where the output is no terminal
STOPPED = "the graph stopped: {}; run the same command again to go on from here"

# Kinds of error -> how many images have it, and "image_id: message" of one of them.
ErrorKinds = dict[str, tuple[int, str]]


class GraphError(RuntimeError):
    """The graph stopped before its end; what is done is kept."""


class MeteredPredictor:
    """A predictor that counts its forwards, their chips and how full the batches were.

    A full batch holds as many canvases as ``plan.batch_pixels`` network px allow, one at least.
    With ``plan.pad`` a canvas is the lane, else the chips' own sides rounded up. ``fill`` is the px
    of the chips, ``room`` those of full batches.
    """

    def __init__(self, predict: Predictor, plan: Plan) -> None:
        self.predict, self.plan = predict, plan
        self.class_names = getattr(predict, "class_names", ())
        self.spread = getattr(predict, "spread", map)
        self.lock = threading.Lock()
        self.sums = {"forwards": 0.0, "chips": 0.0, "fill": 0.0, "room": 0.0}

    def __call__(self, crops: Sequence[NDArray[np.uint8]], lane: Lane) -> Sequence[Prediction]:
        """As `af_pipeline.core.cascade.Predictor`."""
        answers = self.predict(crops, lane)
        canvas = self._canvas(crops, lane)
        full = max(1, self.plan.batch_pixels // canvas)
        with self.lock:
            self.sums["forwards"] += 1
            self.sums["chips"] += len(crops)
            self.sums["fill"] += sum(crop.shape[0] * crop.shape[1] for crop in crops)
            self.sums["room"] += max(full, len(crops)) * canvas
        return answers

    def probe(self) -> None:
        """Look at the largest batch that the plan allows, all black; raises what the detector does.

        What fails there is no fault of an image, whatever its pixels and however many.
        """
        lane = self.plan.lanes[-1]
        black = np.zeros((lane.height, lane.width, 3), np.uint8)
        self.predict([black] * max(1, self.plan.batch_pixels // lane.pixels), lane)

    def _canvas(self, crops: Sequence[NDArray[np.uint8]], lane: Lane) -> int:
        """Network px of one canvas of the batch."""
        if self.plan.pad:
            return lane.pixels
        height, width, _ = np.max([crop.shape for crop in crops], axis=0)
        return int(canvas_sides(np.array([height, width])).prod())

    def take(self) -> dict[str, float]:
        """The sums since the last call."""
        with self.lock:
            taken, self.sums = self.sums, dict.fromkeys(self.sums, 0.0)
        return taken


class StageMeter:
    """One actor's side of the account: ``counter`` None counts nowhere.

    ``alone``: each image is also told before it is begun, to know which one kills.
    """

    def __init__(self, stage: str, counter: Any, alone: bool = False) -> None:
        self.stage, self.counter, self.alone = stage, counter, alone
        self.idle_since = time.perf_counter()
        self.ids: list[str] = []

    def begin(self, block: pa.Table) -> None:
        """A block has come in."""
        self.began = time.perf_counter()
        self.ids = block["image_id"].to_pylist()
        if self.counter is not None:
            self.counter.took.remote(self.stage, len(self.ids), self.began - self.idle_since)
            if self.alone:  # waited for: this process may not live to tell it later
                ray.get(self.counter.begun.remote(self.stage, self.ids))

    def end(self, sums: dict[str, float]) -> None:
        """It is done; ``sums`` as of `MeteredPredictor.take`."""
        self.idle_since = time.perf_counter()
        if self.counter is not None:
            busy = {"busy_s": self.idle_since - self.began}
            self.counter.did.remote(self.stage, len(self.ids), sums | busy)
            if self.alone:
                self.counter.ended.remote(self.stage, self.ids)

    def broken(self, reason: str) -> None:
        """This actor is at fault and is about to end: no image of its block is."""
        actor = ray.get_runtime_context().get_actor_id()
        ray.get(self.counter.broken.remote(self.stage, actor, self.ids, reason))


@dataclass
class StageSums:
    """Sums of one stage over all its actors; ``queue``: images waiting before it, summed over
    ``asked`` looks, and the most there were; ``faults`` of the actors ``faulty`` since the detector
    last answered, for the ``reason`` of the last."""

    took: int = 0
    images: int = 0
    idle_s: float = 0.0
    queue: int = 0
    most_queued: int = 0
    asked: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    faults: int = 0
    faulty: set[str] = field(default_factory=set)
    reason: str = ""


class Counter:
    """Images, errors and detections that left the graph, and the sums of its stages; an actor.

    A block that is tried again counts again; after the death of its process, which must not end
    the run, it counts from nothing. ``stages``: names in the order of the graph.
    """

    def __init__(self, stages: Sequence[str] = ()) -> None:
        self.counts = (0, 0, 0)
        self.kinds: ErrorKinds = {}
        self.stages = {name: StageSums() for name in stages}
        self.order = list(stages)
        self.open: dict[tuple[str, str], int] = {}

    def add(self, images: int, kinds: ErrorKinds, detections: int) -> None:
        """Count a finished block."""
        old, errors = self.counts, sum(count for count, _ in kinds.values())
        self.counts = (old[0] + images, old[1] + errors, old[2] + detections)
        for kind, (count, example) in kinds.items():
            if kind in self.kinds or len(self.kinds) < MOST_KINDS:
                known, first = self.kinds.get(kind, (0, example))
                self.kinds[kind] = (known + count, first)

    def read(self) -> tuple[int, int, int]:
        """Images, errors, detections so far."""
        return self.counts

    def took(self, stage: str, images: int, idle_s: float) -> None:
        """A stage took a block after having waited for it."""
        found = self.stages[stage]
        found.took += images
        found.idle_s += idle_s
        place = self.order.index(stage)
        if place:
            waiting = max(0, self.stages[self.order[place - 1]].images - found.took)
            found.queue += waiting
            found.most_queued = max(found.most_queued, waiting)
            found.asked += 1

    def did(self, stage: str, images: int, sums: dict[str, float]) -> None:
        """A stage is done with a block."""
        found = self.stages[stage]
        found.images += images
        if sums.get("forwards"):
            found.faults, found.faulty = 0, set()
        for name, value in sums.items():
            found.sums[name] = found.sums.get(name, 0.0) + value

    def begun(self, stage: str, ids: Sequence[str]) -> None:
        """A stage is about to look at these images."""
        for image in ids:
            self.open[stage, image] = self.open.get((stage, image), 0) + 1

    def ended(self, stage: str, ids: Sequence[str]) -> None:
        """It has survived them."""
        for image in ids:
            self.open.pop((stage, image), None)

    def broken(self, stage: str, actor: str, ids: Sequence[str], reason: str) -> None:
        """An actor of the stage ends by its own fault, not by that of these images."""
        self.ended(stage, ids)
        found = self.stages[stage]
        found.faults += 1
        found.faulty.add(actor)
        found.reason = reason

    def verdict(self, max_error_rate: float, done: int) -> tuple[str, str]:
        """Why the graph should stop: a fault of the actors, too many failed images; "": none."""
        faults = (fault_of(name, stage) for name, stage in self.stages.items())
        errors = too_many(self.counts, self.kinds, max_error_rate, done)
        return next(filter(None, faults), ""), errors

    def accused(self) -> list[str]:
        """Images that one stage has begun more than once and never ended."""
        return sorted({image for (_, image), times in self.open.items() if times > 1})

    def report(self) -> list[dict[str, Any]]:
        """A record per stage, see `stage_record`."""
        return [stage_record(name, self.stages[name]) for name in self.order]


def fault_of(name: str, stage: StageSums) -> str:
    """Why a stage gets nowhere; "" unless its actors ended by their own fault again and again, with
    no answer of a detector in between."""
    if stage.faults < FAULTS_AN_ACTOR * max(1, len(stage.faulty)):
        return ""
    return f"no actor of {name} works, each ended {FAULTS_AN_ACTOR} times or more: {stage.reason}"


def too_many(
    counts: tuple[int, int, int], kinds: ErrorKinds, max_error_rate: float, done: int = 0
) -> str:
    """How many images failed and mostly why; "" unless it is a larger share than allowed.

    ``done``: images that were done before: a few bad ones that are left are a small share of all.
    """
    images, errors, _ = counts
    if images < JUDGED_FROM or errors <= max_error_rate * (images + done):
        return ""
    most, example = max(kinds.values())
    return (
        f"{errors} of {images} images failed, more than max_error_rate={max_error_rate:g} allows, "
        f"{most} of them like {example}"
    )


def stage_record(name: str, stage: StageSums) -> dict[str, Any]:
    """A stage's line for run.json.

    ``images_per_busy_s`` is the rate of one actor while it works; ``busy_share``: of the time
    between an actor's start and its last block; ``queue_mean``, ``queue_max``: images before the
    stage; ``batch_fill``: chip px over the px of full batches, None where nothing is forwarded.
    """
    sums, busy = stage.sums, stage.sums.get("busy_s", 0.0)
    record: dict[str, Any] = {
        "stage": name,
        "images": stage.images,
        "busy_s": round(busy, 3),
        "idle_s": round(stage.idle_s, 3),
        "images_per_busy_s": round(stage.images / busy, 3) if busy else None,
        "busy_share": round(busy / (busy + stage.idle_s), 3) if busy else None,
        "queue_mean": round(stage.queue / stage.asked, 2) if stage.asked else None,
        "queue_max": stage.most_queued,
        "forwards": int(sums.get("forwards", 0)),
        "chips": int(sums.get("chips", 0)),
    }
    room = sums.get("room", 0.0)
    record["batch_fill"] = round(sums["fill"] / room, 3) if room else None
    return record


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
