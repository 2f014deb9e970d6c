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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
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
from af_pipeline.tuning.options import TuneRule
from af_pipeline.tuning.oracle import mean_pixels
from af_pipeline.tuning.replay import Record, replay
from af_pipeline.tuning.risk import lost_share

Rules = tuple[ChipRule | None, ...]  # one a step; None: everything goes on
# Wraps the items of a stage to show progress: items, description -> the same items.
Progress = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Trial:
    """A setting of a method, and how it scored.

    ``method``: as in `af_pipeline.reporting.charts`; ``setting``: a short text that tells its
    settings apart; ``rules``: of AutoFocus only; ``scores``: as of `Reference.score`; ``seconds``
    an image, None where it was not measured; ``confirmed``: run for real, not replayed.
    """

    method: str
    setting: str = ""
    rules: Rules = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    confirmed: bool = False
    chosen: bool = False

    @property
    def name(self) -> str:
        """The method with its setting."""
        return f"{self.method} {self.setting}".strip()

    @property
    def ap(self) -> float | None:
        """AP; None without ground truth."""
        value: float | None = self.scores["AP"]
        return value

    @property
    def recall(self) -> float:
        """Share of the pyramid's confident detections that were found again."""
        return float(self.scores["recall"])

    @property
    def pixels(self) -> float:
        """Mean network px an image, padding included."""
        return float(self.scores["pixels"])

    @property
    def quality(self) -> float:
        """AP, or recall where there is no ground truth."""
        return self.recall if self.ap is None else self.ap

    @property
    def margin(self) -> float:
        """Margin of chips around their cells, of all steps, network px of the maps' scales."""
        return float(sum(one.context for one in self.rules if one is not None))

    def record(self) -> dict[str, Any]:
        """A flat row for charts and tables, without the rules."""
        own = {name: value for name, value in vars(self).items() if name not in ("scores", "rules")}
        return {**own, **self.scores}

    def allowed(self, rule: TuneRule, pyramid: Trial) -> bool:
        """Whether it keeps to the limits; that of AP only where there is ground truth."""
        if self.recall < 1 - rule.max_lost:
            return False
        return self.ap is None or pyramid.ap is None or self.ap >= pyramid.ap - rule.max_loss


def setting_name(rules: Rules) -> str:
    """A short text that tells settings apart."""
    return " | ".join(
        f"t{one.threshold:g} d{one.dilation:g} c{one.context:g} m{one.min_size:g} "
        f"p{one.chip_cost:g}" if one else "-"
        for one in rules
    )  # fmt: skip


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
        self.known: dict[Rules, Trial] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            if line.endswith("}"):  # the last may be half a line
                scores = json.loads(line)
                setting, stored = scores.pop("key"), scores.pop("rules")
                rules = tuple(one and ChipRule(**one) for one in stored)
                self.known[rules] = Trial("autofocus", setting, rules, scores)
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(
            workers, context, initializer=_start, initargs=(records, plan, reference)
        )

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def trials(self, settings: Sequence[Rules], progress: Progress, what: str) -> list[Trial]:
        """A trial for each of ``settings``, in order."""
        missing = [rules for rules in settings if rules not in self.known]
        scored = self.pool.map(_score, missing)
        with self.path.open("a") as file:
            for rules, scores in zip(progress(missing, what), scored, strict=True):
                trial = self.known[rules] = Trial("autofocus", setting_name(rules), rules, scores)
                stored = [one and asdict(one) for one in rules]
                file.write(json.dumps({"key": trial.setting, "rules": stored, **scores}) + "\n")
                file.flush()
        return [self.known[rules] for rules in settings]


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


def _score(rules: Rules) -> dict[str, float | None]:
    plan = replace(_shared["plan"], rules=rules)
    rows = [replay(record, plan) for record in _shared["records"]]
    scored: dict[str, float | None] = _shared["reference"].score(rows)
    return scored


def rules_at(
    step: int, beam: Sequence[Rules], base: Sequence[ChipRule], rule: TuneRule
) -> list[Rules]:
    """The settings to try at ``step``: those of ``beam`` with every rule of the grid there.

    What the grid does not vary is as in ``base``.
    """
    costs = rule.chip_costs or (base[step].chip_cost,)
    grid = [
        replace(base[step], threshold=threshold, dilation=dilation, context=context,
                min_size=least, chip_cost=cost)
        for threshold, dilation, context, least, cost in itertools.product(
            rule.thresholds, rule.dilations, rule.contexts, rule.min_sizes, costs
        )
    ]  # fmt: skip
    return [(*rules[:step], one, *rules[step + 1 :]) for rules in beam for one in grid]


def frontier(trials: Sequence[Trial]) -> list[Trial]:
    """Trials than which none is as good in AP and recall and cheaper, by rising pixels."""
    best: list[Trial] = []
    for trial in sorted(trials, key=lambda one: (one.pixels, -one.quality, -one.recall)):
        if not any(one.quality >= trial.quality and one.recall >= trial.recall for one in best):
            best.append(trial)
    return best


def pick(trials: Sequence[Trial], pyramid: Trial, rule: TuneRule, count: int) -> list[Trial]:
    """The cheapest trial that keeps to the limits, first, and its neighbours on the frontier.

    Where none keeps to them, the one that loses fewest confident detections comes first.
    """
    line = frontier(trials)
    allowed = [index for index, one in enumerate(line) if one.allowed(rule, pyramid)]
    chosen = allowed[0] if allowed else int(np.argmax([one.recall for one in line]))
    near = sorted(range(len(line)), key=lambda index: (abs(index - chosen), index))
    return [line[index] for index in near[:count]]


def pick_safer(trials: Sequence[Trial], rule: TuneRule, pyramid: Trial, count: int) -> list[Trial]:
    """Settings that keep to the limits by replay with ever more pixels, by rising pixels.

    A replay does not know what a detector misses at the edges of chips: of about equal pixels, the
    setting with the widest margin around its cells comes first. Where none keeps to the limits,
    those that lose fewest confident detections are taken.
    """
    best = max(one.recall for one in trials)
    allowed = [one for one in trials if one.allowed(rule, pyramid)]
    allowed = allowed or [one for one in trials if one.recall >= best]
    pixels = np.log([one.pixels for one in allowed])
    edges = np.linspace(pixels.min(), pixels.max(), count + 1)[1:-1]
    groups: dict[int, list[Trial]] = {}
    for one, place in zip(allowed, np.searchsorted(edges, pixels).tolist(), strict=True):
        groups.setdefault(place, []).append(one)
    return [
        max(groups[place], key=lambda one: (one.margin, one.pixels)) for place in sorted(groups)
    ]


def shift_threshold(rule: ChipRule, shift: float) -> ChipRule:
    """The rule with its threshold moved by ``shift`` in log odds; below 0: more is looked at."""
    odds = np.log(rule.threshold / (1 - rule.threshold)) + shift
    return replace(rule, threshold=float(1 / (1 + np.exp(-odds))))
