"""Made-up runs and jobs/evaluate.py on them, for tests."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
BOX = {"x0": 10.0, "y0": 10.0, "x1": 60.0, "y1": 60.0}


def write_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")


def evaluate(out: Path, truth: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/evaluate.py", "--detections", str(out)]
    return subprocess.run(
        [*command, "--ground-truth", str(truth), *options],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def assert_refused(done: subprocess.CompletedProcess[str], hint: str) -> None:
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert hint in done.stderr
