"""Made-up runs and jobs/evaluate.py on them, for tests."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from af_pipeline.commands.evaluate import main

BOX = {"x0": 10.0, "y0": 10.0, "x1": 60.0, "y1": 60.0}


def write_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")


def evaluate(out: Path, truth: Path, *options: str) -> CompletedProcess[str]:
    """Run the job in this process, which saves its start; a traceback fails the test."""
    command = ["--detections", str(out), "--ground-truth", str(truth), *options]
    said, told = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(told):
        try:
            code = main(command)
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
    return CompletedProcess(command, code, said.getvalue(), told.getvalue())


def assert_refused(done: CompletedProcess[str], hint: str) -> None:
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert hint in done.stderr
