"""One small local Ray for all tests of the distributed shell, and the job without any."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.helpers.small_run import Place


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
    """`index` with the stages of its graph in this process, no cluster."""
    from tests.helpers.in_process import replace_ray

    replace_ray(monkeypatch)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> "Place":
    """A small run that is done, not to be touched."""
    from tests.helpers.in_process import replace_ray
    from tests.helpers.small_run import Place

    with pytest.MonkeyPatch.context() as patch:
        replace_ray(patch)
        return Place(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def place(finished: "Place", tmp_path: Path) -> "Place":
    """A copy of it, to be damaged."""
    return type(finished)(tmp_path, finished)


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
