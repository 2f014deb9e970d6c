"""One small local Ray for all tests of the distributed shell."""

import os
from collections.abc import Iterator
from pathlib import Path

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
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=400_000_000,
        logging_level="WARNING",
    )
    yield
    ray.shutdown()
