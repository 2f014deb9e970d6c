"""Search of the focus settings on replays: which are worth confirming with the real cascade.

Source: AutoFocus (ICCV 2019) §5.4 searches dilation, minimum chip and threshold by grid, the finest
step first with everything before it open; so does this, with a few of the best carried on.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from af_pipeline.core.boxes import iou_matrix
from af_pipeline.core.focus import ChipRule
from af_pipeline.core.plan import Plan
from af_pipeline.core.schema import Detections, ImageRow
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.evaluation.coco import SCORE_NAMES, evaluate_detections
from af_pipeline.output.tables import detections_table
from af_pipeline.tuning.oracle import spent
from af_pipeline.tuning.replay import Record, replay
from af_pipeline.tuning.risk import lost_share

Rules = tuple[ChipRule | None, ...]  # one a step; None: everything goes on


@dataclass(frozen=True)
class Grid:
    """Values tried at every step; lengths in network px of the map's scale, dilation in cells.

    Without ``chip_costs`` (px of area) the configured one stays.
    """

    thresholds: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    dilations: tuple[int, ...] = (1, 3)
    contexts: tuple[int, ...] = (0, 8, 16)
    min_sizes: tuple[int, ...] = (32, 64, 128)
    chip_costs: tuple[float, ...] = ()

    def rules(self, like: ChipRule) -> list[ChipRule]:
        """Every combination, else as ``like``."""
        values = (self.thresholds, self.dilations, self.contexts, self.min_sizes)
        costs = self.chip_costs or (like.chip_cost,)
        return [
            ChipRule(threshold, dilation, least, like.merge, cost, context)
            for threshold, dilation, context, least, cost in itertools.product(*values, costs)
        ]


@dataclass(frozen=True)
class Reference:
    """What rows are scored against.

    ``pyramid``: per image_id the detections of the full pyramid; it is sure of those from
    ``confident_score`` up; one of them is found again by a detection of its class of
    ``found_score`` or more with IoU >= ``iou``. ``names``: class by label; ``truth``: None
    without ground truth.
    """

    pyramid: Mapping[str, Detections]
    names: tuple[str, ...]
    truth: AnnotatedDataset | None
    confident_score: float = 0.5
    found_score: float = 0.25
    iou: float = 0.5

    def confident(self, image_id: str) -> Detections:
        """What the pyramid is sure of in an image."""
        return self.sure(self.pyramid[image_id])

    def sure(self, found: Detections) -> Detections:
        """Those of ``found`` with the score from which the pyramid is sure."""
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
        wanted = [self.confident(row.image_id) for row in rows]
        counts = np.array([len(one) for one in wanted], float)
        lost = np.array([self.lost(*pair) or 0.0 for pair in zip(rows, wanted, strict=True)])
        scores: dict[str, float | None] = dict.fromkeys(SCORE_NAMES)
        if self.truth is not None:
            scores = evaluate_detections(self.truth, detections_table(rows, self.names)).overall
        recall = 1 - float((lost * counts).sum() / max(1.0, counts.sum()))
        return {**scores, "recall": recall, "pixels": spent(rows)}


@dataclass(frozen=True)
class Limits:
    """What a setting may cost: AP below the pyramid's, share of its confident detections lost."""

    max_loss: float
    max_lost: float

    def allow(self, trial: Mapping[str, Any], pyramid: Mapping[str, Any]) -> bool:
        """Whether ``trial`` keeps to both; AP only where there is ground truth."""
        if trial["recall"] < 1 - self.max_lost:
            return False
        return trial["AP"] is None or trial["AP"] >= pyramid["AP"] - self.max_loss


def true_ones(
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


def key_of(rules: Rules) -> str:
    """A short text that tells settings apart."""
    parts = ["-" if one is None else _text(one) for one in rules]
    return " | ".join(parts)


def _text(rule: ChipRule) -> str:
    values = asdict(rule)
    names = ("threshold", "dilation", "context", "min_size")
    return " ".join(f"{name[0]}{values[name]:g}" for name in names) + f" p{rule.chip_cost:g}"


class Replayer:
    """Scores settings on records, on several processors; use in a with statement."""

    def __init__(
        self, records: Sequence[Record], plan: Plan, reference: Reference, workers: int
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(
            workers, context, initializer=_start, initargs=(records, plan, reference)
        )

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def scores(self, settings: Sequence[Rules]) -> Iterator[dict[str, Any]]:
        """One trial a setting, in order, as soon as it is there."""
        for rules, scores in zip(settings, self.pool.map(_try, settings), strict=True):
            yield {"key": key_of(rules), "rules": [r and asdict(r) for r in rules], **scores}


class Trials:
    """Trials kept in a file, one json a line, so that none is made twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            if line.endswith("}"):  # the last may be half a line
                trial = json.loads(line)
                self.known[_identity(rules_of(trial))] = trial

    def fill(
        self,
        settings: Sequence[Rules],
        replayer: Replayer,
        progress: Callable[[Sequence[Any], str], Iterable[Any]],
        what: str,
    ) -> list[dict[str, Any]]:
        """A trial for each of ``settings``."""
        missing = [rules for rules in settings if _identity(rules) not in self.known]
        new = replayer.scores(missing)
        with self.path.open("a") as file:
            for rules in progress(missing, what):
                trial = next(new)
                self.known[_identity(rules)] = trial
                file.write(json.dumps(trial) + "\n")
                file.flush()
        return [self.known[_identity(rules)] for rules in settings]


def _identity(rules: Rules) -> str:
    return json.dumps([one and asdict(one) for one in rules])


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


def _try(rules: Rules) -> dict[str, float | None]:
    plan = replace(_shared["plan"], rules=rules)
    rows = [replay(record, plan) for record in _shared["records"]]
    scored: dict[str, float | None] = _shared["reference"].score(rows)
    return scored


def step_settings(
    step: int, beam: Sequence[Rules], like: Sequence[ChipRule], grid: Grid
) -> list[Rules]:
    """The settings to try at ``step``: those of ``beam`` with every rule of the grid there."""
    return [
        (*rules[:step], rule, *rules[step + 1 :])
        for rules in beam
        for rule in grid.rules(like[step])
    ]


def rules_of(trial: Mapping[str, Any]) -> Rules:
    """The rules of a trial."""
    return tuple(None if one is None else ChipRule(**one) for one in trial["rules"])


def quality(trial: Mapping[str, Any]) -> float:
    """AP, or recall where there is no ground truth."""
    return float(trial["recall"] if trial["AP"] is None else trial["AP"])


def frontier(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Trials than which none is as good in AP and recall and cheaper, by rising pixels."""
    order = sorted(trials, key=lambda one: (one["pixels"], -quality(one), -one["recall"]))
    best: list[Mapping[str, Any]] = []
    for trial in order:
        beaten = any(
            quality(one) >= quality(trial) and one["recall"] >= trial["recall"] for one in best
        )
        if not beaten:
            best.append(trial)
    return best


def pick(
    trials: Sequence[Mapping[str, Any]], pyramid: Mapping[str, Any], limits: Limits, count: int
) -> list[Mapping[str, Any]]:
    """The cheapest trial that keeps to the limits, first, and its neighbours on the frontier.

    Where none keeps to them, the one that loses fewest confident detections comes first.
    """
    line = frontier(trials)
    allowed = [index for index, one in enumerate(line) if limits.allow(one, pyramid)]
    chosen = allowed[0] if allowed else int(np.argmax([one["recall"] for one in line]))
    near = sorted(range(len(line)), key=lambda index: (abs(index - chosen), index))
    return [line[index] for index in near[:count]]


def safer(rule: ChipRule, shift: float) -> ChipRule:
    """The rule with its threshold moved by ``shift`` in log odds."""
    odds: NDArray | float = np.log(rule.threshold / (1 - rule.threshold)) + shift
    return replace(rule, threshold=float(1 / (1 + np.exp(-odds))))
