"""What scoring one run and comparing several share: their inputs, read and checked."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError

from af_pipeline.config import ConfigError, config_from
from af_pipeline.core.plan import Plan
from af_pipeline.data.annotations.dataset import AnnotatedDataset
from af_pipeline.data.annotations.load import load_annotations
from af_pipeline.evaluation.coco import DETECTION_COLUMNS, Inputs, check_inputs
from af_pipeline.evaluation.coverage import Looked
from af_pipeline.output.read import RunDir
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan

IMAGE_COLUMNS = ("image_id", "status", "pixels_processed", "pixels_pyramid")
CHIP_COLUMNS = ("image_id", "scale", "x0", "y0", "x1", "y1")
# What an unusable input raises: each becomes one line and exit code 2.
INPUT_ERRORS = (OSError, ValueError, ImportError, pa.ArrowException, BotoCoreError)


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is scored against what."""
    parser.add_argument(
        "--ground-truth",
        required=True,
        metavar="FILE",
        help="COCO json, VOC image set (ROOT/ImageSets/Main/test.txt), Parquet file or folder, or "
        "YOLO data file (DATA.yaml#val)",
    )
    parser.add_argument("--images", metavar="DIR", help="image folder of VOC, Parquet or YOLO")
    parser.add_argument(
        "--on-broken",
        choices=("fail", "drop"),
        default="fail",
        help="broken boxes: refuse the file (fail), or leave them out",
    )
    parser.add_argument("--max-dets", type=int, default=300, help="per image and class (300)")
    parser.add_argument("--min-score", type=number, default=0.0, help="drop lower scores (0)")
    parser.add_argument(
        "--fp-score", type=number, default=0.3, help="count false positives from here up (0.3)"
    )
    parser.add_argument("--allow-incomplete", action="store_true", help="score a partial run")


def number(text: str) -> float:
    """A finite number of the command line."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def open_run(uri: str, allow_incomplete: bool) -> RunDir:
    """A run's output; ValueError, saying what to do, while it is not complete."""
    run = RunDir.open(uri)
    if run.manifest() is None and not allow_incomplete:
        raise ValueError(
            f"{run.uri} has no run.json, so the run is not complete: run the same jobs/index.py "
            "command again to finish it, or add --allow-incomplete"
        )
    return run


def read_ground_truth(args: argparse.Namespace) -> AnnotatedDataset:
    """The annotations to score against; what was left out is told on stderr."""
    paths, broken = [args.ground_truth], args.on_broken
    truth = load_annotations(paths, args.images, on_broken=broken, scoring=True)
    warn(f"{len(truth.dropped)} broken ground-truth boxes were left out", truth.dropped)
    return truth


def read_inputs(run: RunDir, truth: AnnotatedDataset, args: argparse.Namespace) -> Inputs:
    """The ground truth with the detections of a run from ``args.min_score`` up, checked."""
    return check_inputs(truth, read_detections(run, args.min_score))


def read_detections(run: RunDir, min_score: float) -> pa.Table:
    """DETECTION_COLUMNS of a run's detections from ``min_score`` up."""
    return run.table("detections", DETECTION_COLUMNS, where=ds.field("score") >= min_score)


def where_looked(run: RunDir) -> Looked | str:
    """Where a run looked, or in a few words why that is not known."""
    manifest = run.manifest()
    if manifest is None:
        return "there is no run.json"
    try:
        plan = _scales_of(manifest.get("config"))
    except ConfigError as error:
        return str(error)
    if not run.has_table("chips"):
        return "the run wrote no chips (output.chips=false)"
    columns = ("image_id", "height", "width")
    images = run.table("images", columns, where=ds.field("status") == "ok")
    ids, heights, widths = (images[name].to_pylist() for name in columns)
    sizes = dict(zip(ids, zip(heights, widths, strict=True), strict=True))
    return Looked(plan, sizes, _chips_by_image(run.table("chips", CHIP_COLUMNS)))


def _scales_of(tree: Any) -> Plan:
    """A plan with the scales, border and tiles of a run; ConfigError where its config lacks them.

    Chips are in their table, so no more is read of the config: other versions write other keys.
    """
    sections = (
        [tree, *(tree.get(key) for key in ("stack", "tiles", "lanes"))] if _is_map(tree) else []
    )
    if not sections or not all(map(_is_map, sections)) or not {"mode", "pyramid"} <= tree.keys():
        raise ConfigError("run.json has no config with pyramid, mode, stack, tiles and lanes")
    # What comes out of focus maps is in chips/: autofocus and pyramid have the same scales.
    needed = {
        "mode": "pyramid" if tree["mode"] == "autofocus" else tree["mode"],
        "pyramid": tree["pyramid"],
        "stack": _only(tree["stack"], "border", "valid_ranges"),
        "tiles": _only(tree["tiles"], "scale", "side", "overlap"),
        "lanes": _only(tree["lanes"], "sides", "overlap"),
    }
    return build_plan(config_from(IndexConfig, needed, (), "run.json"))


def not_indexed(truth: AnnotatedDataset, images: pa.Table, what: str = "") -> list[str]:
    """Ground-truth images that the run did not list, sorted; told on stderr."""
    missing = sorted(set(truth.image_ids) - set(images["image_id"].to_pylist()))
    text = f"{what}{len(missing)} ground-truth images were not indexed (objects missed)"
    warn(text, missing)
    return missing


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _only(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: tree[key] for key in keys if key in tree}


def _chips_by_image(chips: pa.Table) -> dict[str, np.ndarray]:
    """image_id -> int [C, 5] of scale and box."""
    if not chips.num_rows:
        return {}
    numbers = np.stack([chips[name].to_numpy() for name in CHIP_COLUMNS[1:]], 1).astype(np.int64)
    ids = pc.dictionary_encode(chips["image_id"]).combine_chunks()
    place = ids.indices.to_numpy()
    order = np.argsort(place, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(place[order])) + 1)
    names = ids.dictionary.to_pylist()
    return {names[place[part[0]]]: numbers[part] for part in parts}


def warn(what: str, names: Sequence[str]) -> None:
    """Name a few on stderr, if there are any."""
    if names:
        print(f"warning: {what}: {', '.join(map(str, names[:5]))}", file=sys.stderr)


def refuse(job: str, error: Exception) -> int:
    """Say on stderr, in one line whatever the library wrote, what is unusable; exit code 2."""
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"{job}: {message}", file=sys.stderr)
    return 2


def write_json(uri: str, content: Any, indent: int | None = 2) -> None:
    """Write to a local path or any fsspec URI."""
    with fsspec.open(uri, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=indent)
        file.write("\n")


def write_parquet(uri: str, table: pa.Table) -> None:
    """Write to a local path or any fsspec URI."""
    with fsspec.open(uri, "wb") as file:
        pq.write_table(table, file)
