"""Chips as batches of tensors, made ahead in threads."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from af_pipeline.models.detector import Targets
from af_pipeline.sniper.sample import Sample
from af_pipeline.sniper.stream import ChipStream, StreamState


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step: images uint8 [N, 3, K, K]; ``state``: after the whole step."""

    images: Tensor
    targets: Targets
    state: StreamState


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Targets]:
    """Stack samples: images uint8 [N, 3, K, K] and targets padded to the most boxes."""
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    most = max(len(s.boxes.boxes) for s in samples)
    n = len(samples)
    boxes = np.zeros((n, most, 4), np.float32)
    labels = np.zeros((n, most), np.int64)
    valid, ignored, crowd = np.zeros((3, n, most), bool)
    for i, sample in enumerate(samples):
        count = len(sample.boxes.boxes)
        boxes[i, :count] = sample.boxes.boxes
        labels[i, :count] = sample.boxes.labels
        valid[i, :count] = sample.boxes.valid
        ignored[i, :count] = sample.boxes.ignored
        crowd[i, :count] = sample.boxes.crowd
    as_tensor = torch.from_numpy
    targets = Targets(
        boxes=as_tensor(boxes),
        labels=as_tensor(labels),
        valid=as_tensor(valid),
        ignored=as_tensor(ignored),
        crowd=as_tensor(crowd),
        focus=as_tensor(np.stack([s.focus for s in samples])),
        ranges=torch.tensor([s.range_px for s in samples], dtype=torch.float32),
    )
    return images, targets


def move(targets: Targets, device: torch.device) -> Targets:
    """The targets on ``device``."""
    return Targets(**{k: v.to(device, non_blocking=True) for k, v in vars(targets).items()})


def make_batches(
    stream: ChipStream,
    state: StreamState,
    rank: int,
    world: int,
    threads: int = 2,
    ahead: int = 4,
) -> Generator[Batch, None, None]:
    """Batches of one worker from ``state`` on, made ahead in threads, without end.

    Worker ``rank`` of ``world`` serves every world-th slot of the stream's global batches.
    """
    if stream.slots % world:
        raise ValueError(f"global_batch {stream.slots} must be a multiple of {world} workers")
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.2)
                break
            except queue.Full:
                continue

    def produce() -> None:
        try:
            with ThreadPoolExecutor(threads, thread_name_prefix="chips") as pool:
                for item in _pending(stream, state, (rank, world), pool, ahead):
                    if stopped.is_set():
                        pool.shutdown(cancel_futures=True)
                        return
                    put(item)
        except BaseException as error:  # carried over to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=produce, daemon=True, name="chip-stream")
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()


def _pending(
    stream: ChipStream,
    state: StreamState,
    place: tuple[int, int],
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[Batch]:
    """Keep the chips of ``ahead`` steps in the making; yield the steps in order."""
    rank, world = place
    walk = stream.walk(state)
    waiting: deque[tuple[list[Future[Sample]], StreamState]] = deque()
    while True:
        while len(waiting) < ahead:
            refs, after = next(walk)
            waiting.append(([pool.submit(stream.sample, ref) for ref in refs[rank::world]], after))
        futures, after = waiting.popleft()
        images, targets = collate([future.result() for future in futures])
        yield Batch(images, targets, after)
