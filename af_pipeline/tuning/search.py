"""Settings scored on replays, and what they are scored against."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from af_pipeline.core.boxes import iou_matrix
from af_pipeline.core.focus import ChipRule
from af_pipeline.core.plan import Plan
from af_pipeline.core.schema import Detections, ImageRow, rows_to_table
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.evaluation.coco import SCORE_NAMES, evaluate_detections
from af_pipeline.output.tables import detections_table
from af_pipeline.tuning.oracle import mean_pixels
from af_pipeline.tuning.pyramids import Kept, narrow_plan, narrow_record
from af_pipeline.tuning.replay import Record, replay
from af_pipeline.tuning.risk import lost_share
from af_pipeline.tuning.trials import Rules, Trial, setting_name

# Wraps the items of a stage to show progress: items, description -> the same items.
Progress = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Reference:
    """What rows are scored against.

    ``pyramid``: per image_id the detections of the full pyramid, confident from ``confident_score``
    up; one of them is found again by a detection of its class of ``found_score`` or more with
    IoU >= ``iou``. ``names``: class by label; ``truth``: None
    without ground truth.
    """

    pyramid: Mapping[str, Detections]
    names: tuple[str, ...]
    truth: AnnotatedDataset | None
    confident_score: float = 0.5
    found_score: float = 0.25
    iou: float = 0.5

    def confident_detections(self, found: Detections) -> Detections:
        """The detections of ``found`` that count as confident."""
        return found.select(found.scores >= self.confident_score)

    def lost(self, row: ImageRow, wanted: Detections) -> float | None:
        """Share of ``wanted`` that ``row`` does not have; None: nothing is wanted."""
        found = row.detections
        found = found.select(found.scores >= self.found_score)
        return lost_share(wanted.boxes, wanted.labels, found.boxes, found.labels, self.iou)

    def score(self, rows: Sequence[ImageRow]) -> dict[str, float | None]:
        """AP and its like (None without ground truth), recall and mean network px of ``rows``.

        ``recall``: share of the confident detections of all images that were found again.
        """
        wanted = [self.confident_detections(self.pyramid[row.image_id]) for row in rows]
        counts = np.array([len(one) for one in wanted], float)
        lost = np.array([self.lost(*pair) or 0.0 for pair in zip(rows, wanted, strict=True)])
        scores: dict[str, float | None] = dict.fromkeys(SCORE_NAMES)
        if self.truth is not None:
            table = detections_table(rows_to_table(rows, stored=True), self.names)
            scores = evaluate_detections(self.truth, table).overall
        recall = 1 - float((lost * counts).sum() / max(1.0, counts.sum()))
        return {**scores, "recall": recall, "pixels": mean_pixels(rows)}


def true_positives(
    found: Detections, names: Sequence[str], image: AnnotatedImage, classes: Sequence[str]
) -> Detections:
    """The detections that meet an object of their class with IoU >= 0.5.

    ``names``: of the labels of ``found``, ``classes``: of those of ``image``.
    """
    own = np.array([names[label] for label in found.labels], object)
    true = np.array([classes[label] for label in image.labels], object)
    same = own[:, None] == true[None]
    meets = iou_matrix(found.boxes, image.boxes[~image.crowd]) >= 0.5
    return found.select((meets & same[:, ~image.crowd]).any(1))


class Replayer:
    """Scores settings on records, on several processors; use in a with statement.

    Trials are kept in a file, one json a line, so that none is made twice.
    """

    def __init__(
        self, path: Path, records: Sequence[Record], plan: Plan, reference: Reference, workers: int
    ) -> None:
        self.path = path
        self.known: dict[tuple[Kept, Rules], Trial] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            if line.endswith("}"):  # the last may be half a line
                scores = json.loads(line)
                setting, stored = scores.pop("key"), scores.pop("rules")
                kept = tuple(scores.pop("scales", range(len(plan.scales))))  # earlier: all
                rules = tuple(one and ChipRule(**one) for one in stored)
                self.known[kept, rules] = Trial("autofocus", setting, rules, scores, scales=kept)
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(
            workers, context, initializer=_start, initargs=(records, plan, reference)
        )

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def trials(
        self, kept: Kept, settings: Sequence[Rules], name: str, progress: Progress, what: str
    ) -> list[Trial]:
        """A trial for each of ``settings`` between the ``kept`` scales, in order.

        ``name``: of these scales, before the settings.
        """
        missing = [rules for rules in settings if (kept, rules) not in self.known]
        scored = self.pool.map(_score, [kept] * len(missing), missing)
        with self.path.open("a") as file:
            for rules, scores in zip(progress(missing, what), scored, strict=True):
                setting = f"{name} {setting_name(rules)}".strip()
                self.known[kept, rules] = Trial("autofocus", setting, rules, scores, scales=kept)
                stored = {"scales": kept, "rules": [one and asdict(one) for one in rules]}
                file.write(json.dumps({"key": setting, **stored, **scores}) + "\n")
                file.flush()
        return [self.known[kept, rules] for rules in settings]


_shared: dict[str, Any] = {}  # of a worker process, set once when it starts


def _start(records: Sequence[Record], plan: Plan, reference: Reference) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent stops us
    _shared.update(records=records, plan=plan, reference=reference)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker would wait for work for ever when its parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _score(kept: Kept, rules: Rules) -> dict[str, float | None]:
    plan = replace(narrow_plan(_shared["plan"], kept), rules=rules)
    rows = [replay(narrow_record(record, kept), plan) for record in _shared["records"]]
    scored: dict[str, float | None] = _shared["reference"].score(rows)
    return scored
