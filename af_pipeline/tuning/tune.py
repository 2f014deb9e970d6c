"""Tuning of the focus settings from start to end: sample, search, confirm, certify, report.

Source: AutoFocus (ICCV 2019) §5.2 to §5.4; the guarantee is `af_pipeline.settings.guarantee`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from af_pipeline.config import config_hash, dump_config
from af_pipeline.core.focus import ChipRule, FocusConfig, FocusLabelConfig, FocusRule
from af_pipeline.core.plan import Plan, unfocused
from af_pipeline.core.schema import ImageRow
from af_pipeline.core.text_table import text_table
from af_pipeline.data.secrets import redact_tree
from af_pipeline.evaluation.coco import score_cell
from af_pipeline.models.info import checkpoint_hash, load_info
from af_pipeline.models.predictor import load_predictor
from af_pipeline.settings.guarantee import FREE, settings_hash, statement
from af_pipeline.settings.index import GuaranteeConfig, IndexConfig
from af_pipeline.settings.modes import build_plan
from af_pipeline.tuning.replay import Record, replay
from af_pipeline.tuning.report import build_report, write_report
from af_pipeline.tuning.risk import certify, fewest_images
from af_pipeline.tuning.runner import Runner, write_json
from af_pipeline.tuning.sample import TuneSample, draw_sample, readable
from af_pipeline.tuning.search import (
    Grid,
    Limits,
    Reference,
    Replayer,
    Rules,
    Trials,
    pick,
    rules_of,
    safer,
    step_settings,
    true_ones,
)

# Thresholds tried for a guarantee: those chosen, moved by so much in log odds; safest first.
SHIFTS = (-math.inf, -6.0, -4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0)
BEAM = 3  # settings of a finer step that the search of the next coarser one goes on with
CONFIGURED = "as configured"

Progress = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class TuneRule:
    """What `jobs/tune.py` is asked for; see its --help."""

    output: Path
    ground_truth: str | None
    sample: int
    seed: int
    limits: Limits
    grid: Grid
    confirm: int
    workers: int
    alpha: float | None
    delta: float
    calibration: int


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

    def reference(self, rows: Sequence[ImageRow]) -> Reference:
        """The reference whose full pyramid is ``rows``; with ground truth, what is right in it."""
        found = {row.image_id: row.detections for row in rows}
        if self.sample.dataset is not None:
            classes = self.sample.dataset.class_names
            for image in self.sample.tune:
                if image.truth is not None and image.image_id in found:
                    own = found[image.image_id]
                    found[image.image_id] = true_ones(own, self.names, image.truth, classes)
        return Reference(found, self.names, self.sample.truth())


def tune(config: IndexConfig, rule: TuneRule, progress: Progress) -> TuneOutcome:
    """Search, confirm and certify; writes config.yaml and report/ into ``rule.output``.

    Raises SourceError, AnnotationError, CheckpointError or ValueError for what cannot be used.
    """
    tuning, notes = _prepare(config, rule, progress)
    records = tuning.runner.record(tuning.sample.tune, tuning.plan)
    base, trials = _search(tuning, records, progress)
    best = pick(trials, base, rule.limits, rule.confirm)
    plans = _plans(tuning, best)
    rows, seconds = tuning.runner.confirm(tuning.sample.tune, plans)
    points = _points(tuning, plans, rows, seconds)
    chosen, kept = _choose(points, rule.limits)
    chosen["chosen"] = True
    rules = rules_of(chosen)
    notes.append(_choice(chosen, rule.limits, kept))
    guarantee = None
    if rule.alpha is not None:
        rules, guarantee, text = _certify(tuning, rules, rule.alpha)
        notes.append(text)
        kept = kept and guarantee is not None
    settings = tuned_config(config, rules, guarantee)
    path = rule.output / "config.yaml"
    path.write_text(yaml.safe_dump(redact_tree(dump_config(settings)), sort_keys=False))
    report = build_report(
        records,
        [image.truth for image in tuning.sample.tune],
        tuning.focus_rule,
        tuning.reference(rows["pyramid"]),
        {one["setting"]: replace(tuning.plan, rules=rules_of(one)) for one in _shown(points)},
        points,
        trials,
    )
    page = write_report(replace(report, notes=notes), rule.output / "report")
    write_json(
        rule.output / "tune.json", {"notes": notes, "points": points, "oracle": report.shares}
    )
    lines = [*_lines(points), *notes, f"settings    {path}", f"report      {page}"]
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
    info = load_info(config.checkpoint)
    labels = FocusLabelConfig.model_validate(info.training["config"]["focus_labels"])
    _open_folder(rule, config, sample)
    predict = load_predictor(config)
    runner = Runner(config, predict, rule.output, progress)
    plan = build_plan(config)
    notes = [f"{len(used)} images of {sample.source} to search on."]
    notes += [f"Left out, cannot be read: {line}" for line in bad + worse]
    return Tuning(config, rule, sample, runner, plan, info.class_names, labels.build()), notes


def _open_folder(rule: TuneRule, config: IndexConfig, sample: TuneSample) -> None:
    """Refuse a folder that holds another tuning's work."""
    identity = {
        "config": config_hash(config, FREE),
        "checkpoint": checkpoint_hash(config.checkpoint),
        "tune": [image.image_id for image in sample.tune],
        "calibration": [image.image_id for image in sample.calibration],
        "ground_truth": rule.ground_truth,
    }
    path = rule.output / "plan.json"
    if path.exists():
        if json.loads(path.read_text()) != identity:
            raise ValueError(
                f"{rule.output} holds a tuning of other images or settings: give another --output"
            )
        return
    if rule.output.exists() and any(rule.output.iterdir()):
        raise ValueError(f"{rule.output} is not empty and holds no tuning: give another --output")
    rule.output.mkdir(parents=True, exist_ok=True)
    write_json(path, identity)


def _search(
    tuning: Tuning, records: Sequence[Record], progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores of the full pyramid, and trials of whole settings, by replay.

    The finest step comes first, those before it open.
    """
    like = [rule for rule in tuning.plan.rules if isinstance(rule, ChipRule)]
    pyramid = [replay(record, unfocused(tuning.plan)) for record in records]
    reference = tuning.reference(pyramid)
    base = reference.score(pyramid)
    store = Trials(tuning.rule.output / "trials.jsonl")
    beam: list[Rules] = [(None,) * len(like)]
    found: list[dict[str, Any]] = []
    with Replayer(records, tuning.plan, reference, tuning.rule.workers) as replayer:
        for step in reversed(range(len(like))):
            settings = step_settings(step, beam, like, tuning.rule.grid)
            found = store.fill(settings, replayer, progress, f"replay, step {step}")
            beam = [rules_of(one) for one in pick(found, base, tuning.rule.limits, BEAM)]
    return base, found


def _plans(tuning: Tuning, best: Sequence[Mapping[str, Any]]) -> dict[str, Plan]:
    """What is run for real: the other modes, the config's own settings, the best trials."""
    config, plan = tuning.config, tuning.plan
    plans = {"pyramid": unfocused(plan)}
    plans["whole"] = build_plan(config.model_copy(update={"mode": "whole"}))
    if len(plan.scales) > 2:
        fine = replace(plan.scales[-2], valid_low=-1.0)
        scales = (*plan.scales[:-2], fine)
        plans["two scales"] = unfocused(replace(plan, scales=scales))
    plans["tiles"] = build_plan(config.model_copy(update={"mode": "tiles"}))
    plans[f"autofocus | {CONFIGURED}"] = plan
    for trial in best:
        plans[f"autofocus | {trial['key']}"] = replace(plan, rules=rules_of(trial))
    return plans


def _points(
    tuning: Tuning,
    plans: Mapping[str, Plan],
    rows: Mapping[str, Sequence[ImageRow]],
    seconds: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Figure 7's records of what was run for real; rules where there are some."""
    reference = tuning.reference(rows["pyramid"])
    points = []
    for name, own in rows.items():
        method, _, setting = name.partition(" | ")
        points.append(
            {
                "method": method,
                "setting": setting,
                **reference.score(own),
                "seconds": seconds[name],
                "confirmed": True,
                "chosen": False,
                "rules": _rule_records(plans[name]) if setting else None,
            }
        )
    return points


def _rule_records(plan: Plan) -> list[dict[str, Any]]:
    return [asdict(rule) for rule in plan.rules if isinstance(rule, ChipRule)]


def _shown(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """AutoFocus as configured and as chosen."""
    return [one for one in points if one["setting"] == CONFIGURED or one["chosen"]]


def _choice(chosen: Mapping[str, Any], limits: Limits, kept: bool) -> str:
    asked = f"at most {limits.max_lost:.0%} of the full pyramid's confident detections lost"
    if chosen["AP"] is not None:
        asked = f"AP at most {limits.max_loss:g} below its own and {asked}, of those that are right"
    if kept:
        return f"Chosen: {chosen['setting']}, the cheapest that was run for real with {asked}."
    least = f"Written is {chosen['setting']}, which loses least."
    return f"Nothing that was run keeps to: {asked}. {least}"


def _lines(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Table 1 as text."""
    pyramid = next(one for one in points if one["method"] == "pyramid")
    header = [
        "method",
        "AP",
        "AP50",
        "recall",
        "MP",
        "pyramid / it",
        "s/image",
        "pyramid / it",
    ]
    rows = [
        [
            f"{one['method']} {one['setting']}".strip() + (" *" if one["chosen"] else ""),
            score_cell(one["AP"]),
            score_cell(one["AP50"]),
            score_cell(one["recall"]),
            f"{one['pixels'] / 1e6:.3f}",
            f"{pyramid['pixels'] / one['pixels']:.2f}",
            f"{one['seconds']:.3f}",
            f"{pyramid['seconds'] / one['seconds']:.2f}",
        ]
        for one in points
    ]
    return text_table([header, *rows]).splitlines()


def _choose(points: Sequence[dict[str, Any]], limits: Limits) -> tuple[dict[str, Any], bool]:
    """The cheapest AutoFocus point within the limits; else the one that loses least, and False."""
    pyramid = next(one for one in points if one["method"] == "pyramid")
    tried = [one for one in points if one["method"] == "autofocus"]
    allowed = [one for one in tried if limits.allow(one, pyramid)]
    if allowed:
        return min(allowed, key=lambda one: one["pixels"]), True
    return max(tried, key=lambda one: one["recall"]), False


def _certify(
    tuning: Tuning, rules: Rules, alpha: float
) -> tuple[Rules, GuaranteeConfig | None, str]:
    """The boldest certified thresholds around ``rules``, what is guaranteed of them, in words."""
    delta = tuning.rule.delta
    path = [tuple(one and safer(one, shift) for one in rules) for shift in SHIFTS]
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
        settings=settings_hash(config, checkpoint_hash(config.checkpoint)),
    )
    return chosen, guarantee, statement(guarantee)


def tuned_config(
    config: IndexConfig, rules: Rules, guarantee: GuaranteeConfig | None
) -> IndexConfig:
    """``config`` with ``rules`` as its focus settings."""
    steps = tuple(
        FocusConfig(**asdict(rule)) if rule else own
        for rule, own in zip(rules, config.focus.steps, strict=True)
    )
    focus = config.focus.model_copy(update={"steps": steps, "budget": None})
    return config.model_copy(update={"focus": focus, "guarantee": guarantee})
