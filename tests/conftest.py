"""One small local Ray for all tests of the distributed shell, and the job without any."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Without a dashboard: it takes longer to start than all else."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: starved by any other job
    # For the S3 servers of tests; workers inherit the environment.
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "tester")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "SECRET")
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    # Workers inherit it: they import the fake detector from the tests.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=400_000_000,
        logging_level="WARNING",
    )
    yield
    ray.shutdown()


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """`index` with its graph in this process, no cluster."""
    from af_pipeline.core.schema import ImageRow
    from af_pipeline.indexing import index as job
    from af_pipeline.indexing import passes
    from af_pipeline.output.folder import RunFolder
    from tests.helpers.planted import cascade_row, index_config

    looked = cache(
        lambda uri, _: cascade_row(index_config(Path("images"), Path("unset")), Path(uri))
    )

    def row_of(record: dict[str, str]) -> ImageRow:
        return replace(looked(record["uri"], record["version"]), version=record["version"])

    def run_graph(parts: list[str], folder: RunFolder, images_per_file: int, *_: object) -> None:
        tables = [pq.read_table(part, filesystem=folder.arrow) for part in parts]
        records = [record for table in tables for record in table.to_pylist()]
        for start in range(0, len(records), images_per_file):
            some = records[start : start + images_per_file]
            folder.append_rows([row_of(record) for record in some])

    @contextmanager
    def no_progress(*_: object) -> Iterator[Any]:
        empty = SimpleNamespace(remote=list)
        yield SimpleNamespace(report=empty, accused=empty)

    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 8.0}, get=lambda answer: answer)
    monkeypatch.setattr(job, "ray", ray)
    monkeypatch.setattr(passes, "ray", ray)
    monkeypatch.setattr(passes, "gc", SimpleNamespace(collect=int))  # takes most of the time else
    monkeypatch.setattr(passes, "set_context", lambda *_, **__: None)
    monkeypatch.setattr(passes, "shown_progress", no_progress)
    monkeypatch.setattr(passes, "build_graph", lambda config, parts, *_: parts)
    monkeypatch.setattr(passes, "watched", lambda *_: None)
    monkeypatch.setattr(passes, "run_graph", run_graph)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Set the size of a disk; the first time it is mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size: str) -> Path:
        again = "remount," if disk.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}size={size}", "none", str(disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no permission to mount a small disk")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
