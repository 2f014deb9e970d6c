"""Tuning of the focus settings from start to end: sample, search, confirm, certify, report.

Source: AutoFocus (ICCV 2019) §5.2 to §5.4; the guarantee is `af_pipeline.settings.guarantee`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import yaml

from af_pipeline.config import config_hash, dump_config
from af_pipeline.core.plan import unfocused
from af_pipeline.data.secrets import redact_tree
from af_pipeline.models.open import focus_labels_of, open_detector
from af_pipeline.output.folder import OutputFolder
from af_pipeline.settings.guarantee import FREE, settings_hash, statement
from af_pipeline.settings.index import GuaranteeConfig, IndexConfig
from af_pipeline.settings.modes import build_plan, fit_lanes
from af_pipeline.tuning.options import TuneRule
from af_pipeline.tuning.pyramids import kept_scales
from af_pipeline.tuning.replay import Record
from af_pipeline.tuning.report import (
    Records,
    accuracy_lines,
    bound_tables,
    recall_table,
    write_report,
)
from af_pipeline.tuning.risk import certify, fewest_images
from af_pipeline.tuning.rounds import CONFIGURED, Tuning, confirm_trials, search
from af_pipeline.tuning.runner import Runner, write_json
from af_pipeline.tuning.sample import TuneSample, draw_sample, readable
from af_pipeline.tuning.search import Progress, Reference
from af_pipeline.tuning.trials import Rules, Trial, choose, frontier, shift_threshold

# Thresholds tried for a guarantee: those chosen, moved by so much in log odds; safest first.
SHIFTS = (-math.inf, -6.0, -4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0)


@dataclass(frozen=True)
class TuneOutcome:
    """``lines`` to print; ``kept``: whether the chosen settings keep to the limits, and the
    guarantee, where one was asked for, could be given."""

    lines: list[str]
    kept: bool


def tune(config: IndexConfig, rule: TuneRule, progress: Progress) -> TuneOutcome:
    """Search, confirm and certify; writes config.yaml and report/ into ``rule.output``.

    Raises SourceError, AnnotationError, CheckpointError or ValueError for what cannot be used.
    """
    tuning, notes = _prepare(config, rule, progress)
    records = tuning.runner.record(tuning.sample.tune, tuning.plan)
    pyramids, replayed = search(tuning, records, progress)
    reference, confirmed = confirm_trials(tuning, replayed, pyramids)
    trials, chosen, kept = choose(confirmed, rule)
    notes += _choice(trials, chosen, rule)
    guarantee = None
    if rule.alpha is not None:
        rules, guarantee, text = _certify(tuning, chosen.rules, rule.alpha)
        chosen = replace(chosen, rules=rules)
        notes.append(text)
        kept = kept and guarantee is not None
    path = rule.output / "config.yaml"
    settings = redact_tree(dump_config(tuned_config(config, chosen, guarantee)))
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
    sizes = rule.sample, calibration, rule.seed
    sample = draw_sample(config, rule.ground_truth, *sizes, on_broken=rule.on_broken)
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


def _choice(trials: Sequence[Trial], chosen: Trial, rule: TuneRule) -> list[str]:
    """What was chosen and why; where AutoFocus was not, how near it came."""
    asked = f"at most {rule.max_lost:.0%} of the full pyramid's confident detections lost"
    if chosen.ap is not None:
        asked = f"AP at most {rule.max_loss:g} below its own and {asked}, of those that are right"
    if rule.alpha is not None and not chosen.allowed(rule, trials[0]):
        least = f"Written is {chosen.name}, which loses least."
        return [f"Nothing that was run keeps to: {asked}. {least}"]
    said = [f"Chosen: {chosen.name}, the cheapest by pixels and time that was run with {asked}."]
    if chosen.method != "autofocus":
        tried = [one for one in trials if one.method == "autofocus"]
        near = max(tried, key=lambda one: one.recall)
        worth = f"{trials[0].pixels / max(1.0, near.pixels):.2f} times fewer pixels"
        said.append(
            f"AutoFocus does not pay here: the settings nearest to that, {near.setting}, lose "
            f"{1 - near.recall:.1%} of these detections at {worth}, in {near.seconds:.3f} s an "
            f"image against {chosen.seconds:.3f} s."
        )
    return said


def _tables(
    tuning: Tuning, records: Sequence[Record], reference: Reference, trials: Sequence[Trial]
) -> dict[str, Records]:
    """The records of Figures 5 and 6; Figure 5 takes ground truth of every image."""
    images = [image.truth for image in tuning.sample.tune if image.truth is not None]
    truth = images if len(images) == len(records) else []
    bound: Records = []
    shares: Records = []
    if truth:
        count = len(tuning.plan.scales)
        focused = [one for one in trials if one.rules and len(one.scales) == count]
        shown = [one for one in focused if one.setting == CONFIGURED or one.chosen]
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
    config = tuned_config(tuning.config, Trial("autofocus", rules=chosen), None)
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
    config: IndexConfig, chosen: Trial, guarantee: GuaranteeConfig | None
) -> IndexConfig:
    """``config`` with the mode, scales and focus settings of ``chosen``."""
    mode = "pyramid" if chosen.method == "fewer scales" else chosen.method
    steps, scales = config.focus.steps, config.pyramid
    if chosen.scales and len(chosen.scales) < len(scales):
        scales = kept_scales(scales, chosen.scales)
        steps = tuple(steps[number] for number in chosen.scales[:-1])
    if chosen.rules:
        steps = tuple(rule or own for rule, own in zip(chosen.rules, steps, strict=True))
    focus = config.focus.model_copy(update={"steps": steps, "budget": None})
    return config.model_copy(
        update={"mode": mode, "pyramid": scales, "focus": focus, "guarantee": guarantee}
    )
