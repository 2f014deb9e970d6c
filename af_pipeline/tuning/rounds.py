"""The two halves of a tuning: settings searched on replays, the best of them run for real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from af_pipeline.core.focus import ChipRule, FocusRule
from af_pipeline.core.plan import Plan, unfocused
from af_pipeline.core.schema import ImageRow
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from af_pipeline.tuning.options import TuneRule
from af_pipeline.tuning.pyramids import Kept, narrow_plan, narrow_record, parts_of, scales_name
from af_pipeline.tuning.replay import Record, replay
from af_pipeline.tuning.runner import Runner
from af_pipeline.tuning.sample import TuneSample
from af_pipeline.tuning.search import Progress, Reference, Replayer, true_positives
from af_pipeline.tuning.trials import Rules, Trial, pick, pick_safer, rules_at, surest

MORE_PYRAMIDS = 2  # besides the full one, that focus settings are searched for
MODES = ("whole", "tiles")
BEAM = 3  # settings of a finer step that the search of the next coarser one goes on with
ROUNDS = 3  # of runs for real, each with safer settings than the last
CONFIGURED = "as configured"


@dataclass(frozen=True)
class Tuning:
    """What all parts of one tuning share."""

    config: IndexConfig
    rule: TuneRule
    sample: TuneSample
    runner: Runner
    plan: Plan
    names: tuple[str, ...]
    focus_rule: FocusRule
    detector: str  # hash of its weights

    def reference(self, rows: Sequence[ImageRow]) -> Reference:
        """The reference whose full pyramid is ``rows``; with ground truth, what is right in it."""
        found = {row.image_id: row.detections for row in rows}
        if self.sample.dataset is not None:
            classes = self.sample.dataset.class_names
            for image in self.sample.tune:
                if image.truth is not None and image.image_id in found:
                    own = found[image.image_id]
                    found[image.image_id] = true_positives(own, self.names, image.truth, classes)
        return Reference(found, self.names, self.sample.truth(), iou=self.rule.iou)


def search(
    tuning: Tuning, records: Sequence[Record], progress: Progress
) -> tuple[list[Trial], list[Trial]]:
    """By replay: pyramids, the full one first, and settings of AutoFocus in the best of them."""
    rows = [replay(record, unfocused(tuning.plan)) for record in records]
    reference = tuning.reference(rows)
    every = tuple(range(len(tuning.plan.scales)))
    full = Trial("pyramid", scores=reference.score(rows), scales=every)
    pyramids = [full, *_fewer(tuning, records, reference)]
    base = [rule for rule in tuning.plan.rules if isinstance(rule, ChipRule)]
    path, workers = tuning.rule.output / "trials.jsonl", tuning.rule.workers
    with Replayer(path, records, tuning.plan, reference, workers) as replayer:
        focus = _FocusSearch(tuning, replayer, full, progress)
        grid = tuning.rule
        found = focus.search(every, base, grid)
        (best,) = pick(found, full, grid, 1)
        base = [rule or own for rule, own in zip(best.rules, base, strict=True)]
        grid = grid.model_copy(update={"dilations": (), "contexts": (), "min_sizes": ()})
        # The shape of chips is as it was best for all scales.
        for part in _cheaper(tuning.rule, pyramids):
            found += focus.search(part, base, grid)
    return pyramids, found


def _fewer(tuning: Tuning, records: Sequence[Record], reference: Reference) -> list[Trial]:
    """Every choice of fewer scales, each of them whole; the coarsest alone is mode whole."""
    scales, found = tuning.plan.scales, []
    for kept in parts_of(len(scales))[1:-1]:
        plan = narrow_plan(tuning.plan, kept)
        rows = [replay(narrow_record(record, kept), plan) for record in records]
        name = scales_name(scales, kept)
        found.append(Trial("fewer scales", name, scores=reference.score(rows), scales=kept))
    return found


def _cheaper(rule: TuneRule, pyramids: Sequence[Trial]) -> list[Kept]:
    """The cheapest choices of fewer scales within the limits, to search focus settings for.

    A guarantee is one against the config's own pyramid, so there no others are tried.
    """
    if rule.alpha is not None:
        return []
    full, *fewer = pyramids
    allowed = [one for one in fewer if len(one.scales) > 1 and one.allowed(rule, full)]
    return [one.scales for one in sorted(allowed, key=lambda one: one.pixels)[:MORE_PYRAMIDS]]


@dataclass(frozen=True)
class _FocusSearch:
    """Settings of AutoFocus by replay, against the full ``pyramid``."""

    tuning: Tuning
    replayer: Replayer
    pyramid: Trial
    progress: Progress

    def search(self, kept: Kept, base: Sequence[ChipRule], grid: TuneRule) -> list[Trial]:
        """Settings between ``kept`` scales; the finest step first, those before it open.

        The safest of a step goes on with the best: runs for real lose more than replays tell.
        """
        scales = self.tuning.plan.scales
        own = [base[number] for number in kept[:-1]]
        name = "" if len(kept) == len(scales) else scales_name(scales, kept)
        beam: list[Rules] = [(None,) * len(own)]
        found: list[Trial] = []
        for step in reversed(range(len(own))):
            settings = rules_at(step, beam, own, grid)
            what = f"replay, step {step} {name}".strip()
            found = self.replayer.trials(kept, settings, name, self.progress, what)
            best = [*pick(found, self.pyramid, grid, BEAM), surest(found)]
            beam = list(dict.fromkeys(one.rules for one in best))
        return found


def _plan_of(tuning: Tuning, trial: Trial) -> Plan:
    plan = narrow_plan(tuning.plan, trial.scales) if trial.scales else unfocused(tuning.plan)
    return replace(plan, rules=trial.rules or plan.rules)


def _runs(
    tuning: Tuning, pyramids: Sequence[Trial], best: Sequence[Trial]
) -> list[tuple[Trial, Plan]]:
    """What is run for real: the other modes, the config's own settings, the best trials."""
    config, plan, full = tuning.config, tuning.plan, pyramids[0]
    fewer = [one for one in pyramids[1:] if one.allowed(tuning.rule, full)] or pyramids[1:]
    cheapest = min(fewer, key=lambda one: one.pixels)
    others = {mode: build_plan(config.model_copy(update={"mode": mode})) for mode in MODES}
    runs = [(full, _plan_of(tuning, full)), (cheapest, _plan_of(tuning, cheapest))]
    runs += [(Trial(mode), others[mode]) for mode in MODES]
    runs.append((Trial("autofocus", CONFIGURED, plan.rules, scales=full.scales), plan))
    return [*runs, *((trial, _plan_of(tuning, trial)) for trial in best)]


def confirm_trials(
    tuning: Tuning, replayed: Sequence[Trial], pyramids: Sequence[Trial]
) -> tuple[Reference, list[Trial]]:
    """What was run for real, the full pyramid first, scored by the reference that it makes.

    A detector sees less at the edges of a chip than a replay knows. Where nothing found by replay
    keeps to the limits, safer settings are run: those that by replay keep to them with as much to
    spare as was lost on the way, and with ever more pixels.
    """
    rule, limits, pyramid = tuning.rule, tuning.rule, pyramids[0]
    runs = _runs(tuning, pyramids, pick(replayed, pyramid, rule, rule.confirm))
    rows, seconds = tuning.runner.confirm(tuning.sample.tune, _named(runs))
    reference = tuning.reference(rows["pyramid"])
    trials = _scored(runs, rows, seconds, reference)
    searched = {one.name for one in replayed}
    for number in range(1, ROUNDS):
        if any(one.allowed(rule, trials[0]) for one in trials if one.name in searched):
            break
        limits = _tightened(limits, trials, replayed)
        known = {one.name for one in trials}
        safer = pick_safer(replayed, limits, pyramid, rule.confirm)
        runs = [(one, _plan_of(tuning, one)) for one in safer if one.name not in known]
        if not runs:
            break
        plans = _named(runs)
        rows, seconds = tuning.runner.confirm(tuning.sample.tune, plans, f"confirm{number}")
        trials += _scored(runs, rows, seconds, reference)
    return reference, trials


def _named(runs: Sequence[tuple[Trial, Plan]]) -> dict[str, Plan]:
    return {trial.name: plan for trial, plan in runs}


def _scored(
    runs: Sequence[tuple[Trial, Plan]],
    rows: Mapping[str, Sequence[ImageRow]],
    seconds: Mapping[str, float],
    reference: Reference,
) -> list[Trial]:
    return [
        replace(one, scores=reference.score(rows[one.name]), seconds=seconds[one.name],
                confirmed=True)
        for one, _ in runs
    ]  # fmt: skip


def _tightened(rule: TuneRule, trials: Sequence[Trial], replayed: Sequence[Trial]) -> TuneRule:
    """The limits less what trials lose for real and by replay do not, on average."""
    by_name = {one.name: one for one in replayed}
    pairs = [(by_name[one.name], one) for one in trials if one.name in by_name]
    changes = {"max_lost": rule.max_lost - float(np.mean([a.recall - b.recall for a, b in pairs]))}
    losses = [a.ap - b.ap for a, b in pairs if a.ap is not None and b.ap is not None]
    if losses:
        changes["max_loss"] = rule.max_loss - float(np.mean(losses))
    return rule.model_copy(update=changes)
