"""Detections of a run as one CSV file, with the columns of detections/*.parquet."""

from __future__ import annotations

import argparse

import fsspec
import pyarrow.dataset as ds
from pyarrow import csv

from af_pipeline.core.schema import DETECTIONS
from af_pipeline.output.read import RunDir


def write(run: RunDir, target: str, args: argparse.Namespace) -> str:
    """Write the detections from ``args.min_score`` up to a local path or any fsspec URI."""
    where = ds.field("score") >= args.min_score
    table = run.table("detections", DETECTIONS.names, where=where)
    with fsspec.open(target, "wb") as file:
        csv.write_csv(table, file)
    return f"{table.num_rows} detections written to {target}"
