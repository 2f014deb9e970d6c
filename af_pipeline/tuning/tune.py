"""Tuning of the focus settings from start to end: sample, search, confirm, certify, report.

Source: AutoFocus (ICCV 2019) §5.2 to §5.4; the guarantee is `af_pipeline.settings.guarantee`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import yaml

from af_pipeline.config import config_hash, dump_config
from af_pipeline.core.focus import ChipRule, FocusRule
from af_pipeline.core.plan import Plan, unfocused
from af_pipeline.core.schema import ImageRow
from af_pipeline.data.secrets import redact_tree
from af_pipeline.models.open import focus_labels_of, open_detector
from af_pipeline.output.folder import OutputFolder
from af_pipeline.settings.guarantee import FREE, settings_hash, statement
from af_pipeline.settings.index import GuaranteeConfig, IndexConfig
from af_pipeline.settings.modes import build_plan, fit_lanes
from af_pipeline.tuning.options import TuneRule
from af_pipeline.tuning.replay import Record, replay
from af_pipeline.tuning.report import (
    Records,
    accuracy_lines,
    bound_tables,
    recall_table,
    write_report,
)
from af_pipeline.tuning.risk import certify, fewest_images
from af_pipeline.tuning.runner import Runner, write_json
from af_pipeline.tuning.sample import TuneSample, draw_sample, readable
from af_pipeline.tuning.search import (
    Progress,
    Reference,
    Replayer,
    Rules,
    Trial,
    frontier,
    pick,
    pick_safer,
    rules_at,
    shift_threshold,
    true_positives,
)

# Thresholds tried for a guarantee: those chosen, moved by so much in log odds; safest first.
SHIFTS = (-math.inf, -6.0, -4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0)
BEAM = 3  # settings of a finer step that the search of the next coarser one goes on with
ROUNDS = 3  # of runs for real, each with safer settings than the last
CONFIGURED = "as configured"


@dataclass(frozen=True)
class TuneOutcome:
    """``lines`` to print; ``kept``: whether the chosen settings keep to the limits, and the
    guarantee, where one was asked for, could be given."""

    lines: list[str]
    kept: bool


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


def tune(config: IndexConfig, rule: TuneRule, progress: Progress) -> TuneOutcome:
    """Search, confirm and certify; writes config.yaml and report/ into ``rule.output``.

    Raises SourceError, AnnotationError, CheckpointError or ValueError for what cannot be used.
    """
    tuning, notes = _prepare(config, rule, progress)
    records = tuning.runner.record(tuning.sample.tune, tuning.plan)
    pyramid, replayed = _search(tuning, records, progress)
    reference, confirmed = confirm_trials(tuning, replayed, pyramid)
    trials, chosen, kept = choose(confirmed, rule)
    notes.append(_choice(chosen, rule, kept))
    rules, guarantee = chosen.rules, None
    if rule.alpha is not None:
        rules, guarantee, text = _certify(tuning, rules, rule.alpha)
        notes.append(text)
        kept = kept and guarantee is not None
    path = rule.output / "config.yaml"
    settings = redact_tree(dump_config(tuned_config(config, rules, guarantee)))
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    tables = _tables(tuning, records, reference, trials)
    tables["points"] = [one.record() for one in (*trials, *frontier(replayed))]
    page = write_report(tables, notes, rule.output / "report")
    points = [
        {**one.record(), "rules": [rule and asdict(rule) for rule in one.rules]} for one in trials
    ]
    found = {"notes": notes, "points": points, "oracle": tables["shares"]}
    write_json(rule.output / "tune.json", found)
    lines = [*accuracy_lines(trials), *notes, f"settings    {path}", f"report      {page}"]
    return TuneOutcome(lines, kept)


def _prepare(config: IndexConfig, rule: TuneRule, progress: Progress) -> tuple[Tuning, list[str]]:
    if len(config.pyramid) < 2:
        raise ValueError("tuning needs a pyramid of two scales or more")
    focus = config.focus.model_copy(update={"budget": None})
    config = config.model_copy(update={"mode": "autofocus", "guarantee": None, "focus": focus})
    calibration = rule.calibration if rule.alpha is not None else 0
    sample = draw_sample(config, rule.ground_truth, rule.sample, calibration, rule.seed)
    used, bad = readable(sample.tune, config)
    held, worse = readable(sample.calibration, config)
    sample = replace(sample, tune=tuple(used), calibration=tuple(held))
    if not used:
        raise ValueError("no image can be read: " + "; ".join([*bad, *worse][:3]))
    opened = open_detector(config)
    config = fit_lanes(config, opened.shape)
    labels = focus_labels_of(config)
    _open_folder(rule, config, sample, opened.identity)
    runner = Runner(config, opened.predictor(), rule.output, progress)
    plan = build_plan(config)
    notes = [f"{len(used)} images of {sample.source} to search on."]
    notes += [f"Left out, cannot be read: {line}" for line in bad + worse]
    names, identity = opened.class_names, opened.identity
    return Tuning(config, rule, sample, runner, plan, names, labels, identity), notes


def _open_folder(rule: TuneRule, config: IndexConfig, sample: TuneSample, detector: str) -> None:
    """Refuse a folder that holds another tuning's work."""
    identity = {
        "config": config_hash(config, FREE),
        "checkpoint": detector,
        "tune": [image.image_id for image in sample.tune],
        "calibration": [image.image_id for image in sample.calibration],
        "ground_truth": rule.ground_truth,
    }
    OutputFolder.at(str(rule.output), work="tuning", setting="--output").claim(identity)


def _search(
    tuning: Tuning, records: Sequence[Record], progress: Progress
) -> tuple[Trial, list[Trial]]:
    """The full pyramid, and whole settings, by replay.

    The finest step comes first, those before it open.
    """
    base = [rule for rule in tuning.plan.rules if isinstance(rule, ChipRule)]
    rows = [replay(record, unfocused(tuning.plan)) for record in records]
    reference = tuning.reference(rows)
    pyramid = Trial("pyramid", scores=reference.score(rows))
    beam: list[Rules] = [(None,) * len(base)]
    found: list[Trial] = []
    path, workers = tuning.rule.output / "trials.jsonl", tuning.rule.workers
    with Replayer(path, records, tuning.plan, reference, workers) as replayer:
        for step in reversed(range(len(base))):
            settings = rules_at(step, beam, base, tuning.rule)
            found = replayer.trials(settings, progress, f"replay, step {step}")
            beam = [one.rules for one in pick(found, pyramid, tuning.rule, BEAM)]
    return pyramid, found


def _runs(tuning: Tuning, best: Sequence[Trial]) -> list[tuple[Trial, Plan]]:
    """What is run for real: the other modes, the config's own settings, the best trials."""
    config, plan = tuning.config, tuning.plan
    runs = [
        (Trial("pyramid"), unfocused(plan)),
        (Trial("whole"), build_plan(config.model_copy(update={"mode": "whole"}))),
    ]
    if len(plan.scales) > 2:
        fine = replace(plan.scales[-2], valid_range=(-1, plan.scales[-2].valid_high))
        scales = (*plan.scales[:-2], fine)
        runs.append((Trial("two scales"), unfocused(replace(plan, scales=scales))))
    runs.append((Trial("tiles"), build_plan(config.model_copy(update={"mode": "tiles"}))))
    runs.append((Trial("autofocus", CONFIGURED, plan.rules), plan))
    return [*runs, *((trial, replace(plan, rules=trial.rules)) for trial in best)]


def confirm_trials(
    tuning: Tuning, replayed: Sequence[Trial], pyramid: Trial
) -> tuple[Reference, list[Trial]]:
    """What was run for real, the full pyramid first, scored by the reference that it makes.

    A detector sees less at the edges of a chip than a replay knows. Where nothing found by replay
    keeps to the limits, safer settings are run: those that by replay keep to them with as much to
    spare as was lost on the way, and with ever more pixels.
    """
    rule, limits = tuning.rule, tuning.rule
    runs = _runs(tuning, pick(replayed, pyramid, rule, rule.confirm))
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
        runs = [
            (one, replace(tuning.plan, rules=one.rules)) for one in safer if one.name not in known
        ]
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


def choose(trials: Sequence[Trial], rule: TuneRule) -> tuple[list[Trial], Trial, bool]:
    """The trials with one chosen, that one, and whether it keeps to the limits.

    The cheapest AutoFocus within the limits; else the one that loses least.
    """
    pyramid, tried = trials[0], [one for one in trials if one.method == "autofocus"]
    allowed = [one for one in tried if one.allowed(rule, pyramid)]
    best = (
        min(allowed, key=lambda one: one.pixels)
        if allowed
        else max(tried, key=lambda one: one.recall)
    )
    chosen = replace(best, chosen=True)
    return [chosen if one is best else one for one in trials], chosen, bool(allowed)


def _choice(chosen: Trial, rule: TuneRule, kept: bool) -> str:
    asked = f"at most {rule.max_lost:.0%} of the full pyramid's confident detections lost"
    if chosen.ap is not None:
        asked = f"AP at most {rule.max_loss:g} below its own and {asked}, of those that are right"
    if kept:
        return f"Chosen: {chosen.setting}, the cheapest that was run for real with {asked}."
    least = f"Written is {chosen.setting}, which loses least."
    return f"Nothing that was run keeps to: {asked}. {least}"


def _tables(
    tuning: Tuning, records: Sequence[Record], reference: Reference, trials: Sequence[Trial]
) -> dict[str, Records]:
    """The records of Figures 5 and 6; Figure 5 takes ground truth of every image."""
    images = [image.truth for image in tuning.sample.tune if image.truth is not None]
    truth = images if len(images) == len(records) else []
    bound: Records = []
    shares: Records = []
    if truth:
        shown = [one for one in trials if one.setting == CONFIGURED or one.chosen]
        focus_rule, pyramid = tuning.focus_rule, trials[0]
        bound, shares = bound_tables(records, truth, focus_rule, tuning.plan, [pyramid, *shown])
    recall = recall_table(records, truth, reference, tuning.plan)
    return {"bound": bound, "recall": recall, "shares": shares}


def _certify(
    tuning: Tuning, rules: Rules, alpha: float
) -> tuple[Rules, GuaranteeConfig | None, str]:
    """The boldest certified thresholds around ``rules``, what is guaranteed of them, in words."""
    delta = tuning.rule.delta
    path = [tuple(one and shift_threshold(one, shift) for one in rules) for shift in SHIFTS]
    plans = [replace(tuning.plan, rules=one) for one in path]
    images = tuning.sample.calibration
    reference = tuning.reference([])
    losses = tuning.runner.losses(images, unfocused(tuning.plan), plans, reference)
    count, needed = losses.shape[1], fewest_images(alpha, delta)
    if count < needed:
        return rules, None, (
            f"No guarantee: {count} calibration images have confident detections; alpha {alpha:g} "
            f"at delta {delta:g} takes {needed} or more (--calibration, or a larger alpha)."
        )  # fmt: skip
    found = certify(losses, alpha, delta)
    if found.index is None:
        return rules, None, (
            f"No guarantee: even the safest thresholds may lose more than {alpha:g}; they lost "
            f"{found.means[0]:.4f} of {count} calibration images' confident detections."
        )  # fmt: skip
    chosen = path[found.index]
    config = tuned_config(tuning.config, chosen, None)
    guarantee = GuaranteeConfig(
        alpha=alpha,
        delta=delta,
        confident=reference.confident_score,
        found_score=reference.found_score,
        iou=reference.iou,
        images=count,
        mean_lost=float(found.means[found.index]),
        p_value=float(found.p_values[found.index]),
        method="learn then test, betting p-values, fixed sequence",
        source=tuning.sample.source,
        settings=settings_hash(config, tuning.detector),
    )
    return chosen, guarantee, statement(guarantee)


def tuned_config(
    config: IndexConfig, rules: Rules, guarantee: GuaranteeConfig | None
) -> IndexConfig:
    """``config`` with ``rules`` as its focus settings."""
    pairs = zip(rules, config.focus.steps, strict=True)
    steps = tuple(rule or own for rule, own in pairs)
    focus = config.focus.model_copy(update={"steps": steps, "budget": None})
    return config.model_copy(update={"focus": focus, "guarantee": guarantee})
