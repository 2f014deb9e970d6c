"""Chips as batches of tensors, made ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
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

    def padded(name: str, *shape: int) -> Tensor:
        rows = [getattr(sample.boxes, name) for sample in samples]
        whole = np.zeros((len(rows), most, *shape), rows[0].dtype)
        for place, row in zip(whole, rows, strict=True):
            place[: len(row)] = row
        return torch.from_numpy(whole)

    targets = Targets(
        boxes=padded("boxes", 4),
        labels=padded("labels").long(),
        valid=padded("valid"),
        ignored=padded("ignored"),
        crowd=padded("crowd"),
        focus=torch.from_numpy(np.stack([s.focus for s in samples])),
        ranges=torch.tensor([s.range_px for s in samples], dtype=torch.float32),
    )
    return images, targets


def move(targets: Targets, device: torch.device) -> Targets:
    """The targets on ``device``."""
    return Targets(**{k: v.to(device, non_blocking=True) for k, v in vars(targets).items()})


class BatchLoader(Iterator[Batch]):
    """Batches of one worker from ``state`` on, made ahead in threads, without end; `close` it.

    Worker ``rank`` of ``world`` serves every world-th slot of the stream's global batches. The
    chips of ``ahead`` steps are in the making while as many batches wait.
    """

    def __init__(
        self,
        stream: ChipStream,
        state: StreamState,
        place: tuple[int, int] = (0, 1),
        threads: int = 2,
        ahead: int = 4,
    ) -> None:
        self.rank, self.world = place
        if stream.slots % self.world:
            raise ValueError(
                f"global_batch {stream.slots} must be a multiple of {self.world} workers"
            )
        self.stream, self.steps, self.ahead = stream, stream.walk(state), ahead
        self.making: deque[tuple[list[Future[Sample]], StreamState]] = deque()
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="chips")
        self.lead = ThreadPoolExecutor(1, thread_name_prefix="chip-stream")  # makes them in order
        self.ready = deque(self.lead.submit(self._make) for _ in range(ahead))

    def __next__(self) -> Batch:
        """The next batch; what went wrong in a thread is raised here, and ends them all."""
        try:
            batch = self.ready.popleft().result()
        except BaseException:
            self.close()
            raise
        self.ready.append(self.lead.submit(self._make))
        return batch

    def close(self) -> None:
        """End the threads once they have made what they are at."""
        for threads in (self.lead, self.pool):
            threads.shutdown(wait=False, cancel_futures=True)

    def _make(self) -> Batch:
        while len(self.making) < self.ahead:
            refs, after = next(self.steps)
            mine = refs[self.rank :: self.world]
            self.making.append(([self.pool.submit(self.stream.sample, ref) for ref in mine], after))
        futures, after = self.making.popleft()
        images, targets = collate([future.result() for future in futures])
        return Batch(images, targets, after)
