"""Settings of a tuning and how they scored; which of them are worth running, and the best.

Source: AutoFocus (ICCV 2019) §5.4 searches dilation, minimum chip and threshold by grid, the finest
step first with everything before it open; so does this, with a few of the best carried on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from af_pipeline.core.focus import ChipRule
from af_pipeline.tuning.options import TuneRule
from af_pipeline.tuning.pyramids import Kept

Rules = tuple[ChipRule | None, ...]  # one a step; None: everything goes on
WORTH = 0.8  # of the full pyramid's pixels times seconds: what saves less is not worth its loss
ABOUT = 0.02  # recall by replay that makes no difference: it does not foretell so finely


@dataclass(frozen=True)
class Trial:
    """A setting of a method, and how it scored.

    ``method``: as in `af_pipeline.reporting.charts`; ``setting``: a short text that tells its
    settings apart; ``rules``: of AutoFocus only; ``scales``: those of the pyramid that are used,
    none: all; ``scores``: as of `Reference.score`; ``seconds`` an image, None where it was not
    measured; ``confirmed``: run for real, not replayed.
    """

    method: str
    setting: str = ""
    rules: Rules = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    confirmed: bool = False
    chosen: bool = False
    scales: Kept = ()

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
    def cost(self) -> float:
        """Pixels times seconds, an image: what is few and fast is cheap."""
        return self.pixels * (self.seconds or 0.0)

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


def rules_at(
    step: int, beam: Sequence[Rules], base: Sequence[ChipRule], rule: TuneRule
) -> list[Rules]:
    """The settings to try at ``step``: those of ``beam`` with every rule of the grid there.

    What the grid does not vary is as in ``base``.
    """
    tried = {
        "threshold": rule.thresholds,
        "dilation": rule.dilations,
        "context": rule.contexts,
        "min_size": rule.min_sizes,
        "chip_cost": rule.chip_costs,
    }
    values = [own or (getattr(base[step], name),) for name, own in tried.items()]
    grid = [
        replace(base[step], **dict(zip(tried, one, strict=True)))
        for one in itertools.product(*values)
    ]
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
    those are taken that lose about as few confident detections as the best.
    """
    allowed = [one for one in trials if one.allowed(rule, pyramid)] or _about_best(trials)
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


def choose(trials: Sequence[Trial], rule: TuneRule) -> tuple[list[Trial], Trial, bool]:
    """The trials with one chosen, that one, and whether it keeps to the limits.

    ``trials``: run for real, the full pyramid first. Chosen is the cheapest of all methods within
    the limits, the pyramid itself unless that is worth the loss. A guarantee is about AutoFocus:
    where one is asked for, the others are no choice, and where no settings keep to the limits,
    those that lose least are taken.
    """
    pyramid, tried = trials[0], trials
    if rule.alpha is not None:
        tried = [one for one in trials if one.method == "autofocus"]
    allowed = [one for one in tried if one is pyramid or one.allowed(rule, pyramid)]
    best = (
        min(allowed, key=lambda one: one.cost)
        if allowed
        else max(tried, key=lambda one: one.recall)
    )
    if rule.alpha is None and best.cost > WORTH * pyramid.cost:
        best = pyramid
    chosen = replace(best, chosen=True)
    return [chosen if one is best else one for one in trials], chosen, bool(allowed)


def surest(trials: Sequence[Trial]) -> Trial:
    """The cheapest of those that lose about as few confident detections as the best."""
    return min(_about_best(trials), key=lambda one: one.pixels)


def _about_best(trials: Sequence[Trial]) -> list[Trial]:
    best = max(one.recall for one in trials) - ABOUT
    return [one for one in trials if one.recall >= best]
