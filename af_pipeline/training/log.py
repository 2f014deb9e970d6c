"""What a training run tells: a line on stdout, each step in metrics.jsonl and in TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from af_pipeline.data.storage import replacing
from af_pipeline.settings.train import TrainConfig

METRICS_FILE = "metrics.jsonl"


class TrainingLog:
    """Per-step metrics of rank 0; other ranks only keep the last means.

    ``start``: the step a run goes on with: what an earlier start wrote of later steps, which are
    done again, is cut off.
    """

    def __init__(self, config: TrainConfig, folder: Path, start: int, rank: int) -> None:
        self.config, self.rank, self.start = config, rank, start
        self.sums: dict[str, float] = {}
        self.count = 0
        self.began = self.since = time.perf_counter()
        self.path = folder / METRICS_FILE
        self.board: EventsWriter | None = None
        if rank == 0:
            (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
            cut_after(self.path, start)
            # Not SummaryWriter, whose thread dies on a full disk and leaves its callers waiting.
            self.board = EventsWriter(str(folder / "tensorboard/events"))
            begin = SessionLog(status=SessionLog.START)  # hides what came later before
            self.board.write_event(Event(step=start + 1, session_log=begin))

    def step(self, step: int, losses: Mapping[str, float], lr: float) -> dict[str, float]:
        """Count step number ``step`` (from 1); returns what is known of it."""
        optim, now = self.config.optim, time.perf_counter()
        done = step - self.start
        record = dict(losses) | {
            "lr": lr,
            "chips_per_s": done * optim.global_batch / max(1e-9, now - self.began),
            "eta_s": (now - self.began) / done * (optim.steps - step),
        }
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.write(step, record)
        if step % self.config.run.log_every == 0 or step == optim.steps:
            self._print(step, record, now)
            if self.board is not None:
                self.board.flush()
        return record

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Append to metrics.jsonl and TensorBoard."""
        if self.board is None:
            return
        with self.path.open("a") as file:
            numbers = {name: float(f"{value:.6g}") for name, value in record.items()}
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        for name, value in record.items():
            summary = scalar(name.replace("val_", "val/", 1), value)
            self.board.write_event(Event(step=step, wall_time=time.time(), summary=summary))

    def tell(self, text: str) -> None:
        """Print a line, on rank 0."""
        if self.rank == 0:
            print(text, flush=True)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self.board is not None:
            self.board.close()

    def _print(self, step: int, record: Mapping[str, float], now: float) -> None:
        means = {name: value / self.count for name, value in self.sums.items()}
        rate = self.count * self.config.optim.global_batch / max(1e-9, now - self.since)
        parts = "  ".join(f"{k} {v:.3f}" for k, v in means.items() if k not in ("total",))
        seconds = int(record["eta_s"])
        eta = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        head = f"step {step}/{self.config.optim.steps}  loss {means['total']:.3f}"
        self.tell(f"{head}  {parts}  lr {record['lr']:.2e}  {rate:.1f} chips/s  ETA {eta}")
        self.sums, self.count, self.since = {}, 0, now


def cut_after(path: Path, step: int) -> None:
    """Drop the records of steps after ``step`` and a half-written last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            number = json.loads(line)["step"]
        except ValueError:
            continue
        if number <= step:
            kept.append(line + "\n")
    with replacing(path) as partial:
        partial.write_text("".join(kept))
