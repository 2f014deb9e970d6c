"""Real data for tests: not in the repository, so a test that needs it skips where it is missing."""

import os
from pathlib import Path

import pytest

# Without AF_DATA: a folder of real images beside the checkout.
BESIDE = Path(__file__).resolve().parents[3].joinpath("shared", "data")


def real_data(name: str) -> Path:
    """The folder of a real data set: in $AF_DATA, else in a folder of them beside the checkout."""
    folder = Path(os.environ.get("AF_DATA", BESIDE)) / name
    if not folder.is_dir():
        pytest.skip(f"real data set {name!r} is not at {folder} (set AF_DATA to where it is)")
    return folder
