"""Killed workers and drivers: the same command goes on, with the losses an undisturbed run has."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.training import arguments, job, losses, steps

if not Path("/proc/self/stat").exists():
    pytest.skip("finds worker processes in /proc", allow_module_level=True)

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(900)]

STEPS = 10
SETS = (f"optim.steps={STEPS}", "run.checkpoint_every=3")
ROOT = Path(__file__).parents[2]


def train_workers(ancestor: int) -> list[int]:
    """Ray Train's worker processes below ``ancestor``: never those of somebody else's run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            named = b"RayTrainWorker" in (folder / "cmdline").read_bytes()
            if named and ancestor in ancestors(int(folder.name)):
                found.append(int(folder.name))
    return found


def ancestors(pid: int) -> list[int]:
    chain = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        chain.append(pid)
    return chain


def when_step(folder: Path, step: int, act: Callable[[], object]) -> threading.Thread:
    """Act as soon as ``step`` is written."""

    def watch() -> None:
        end = time.monotonic() + 600
        while time.monotonic() < end:
            if steps(folder)[-1:] >= [step]:
                act()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> list[float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert job(folder, *SETS) == 0
    return losses(folder)


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker(tmp_path: Path, undisturbed: list[float]) -> None:
    killed = []

    def kill() -> None:
        for pid in train_workers(os.getpid()):
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    thread = when_step(tmp_path, 5, kill)
    assert job(tmp_path, *SETS) == 0
    thread.join()
    assert killed
    assert steps(tmp_path) == list(range(1, STEPS + 1))
    assert losses(tmp_path) == pytest.approx(undisturbed, rel=1e-4)


def test_a_killed_driver(tmp_path: Path, undisturbed: list[float]) -> None:
    command = [sys.executable, str(ROOT / "jobs/train.py"), *arguments(tmp_path, *SETS)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
    first = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    thread = when_step(tmp_path, 5, lambda: first.send_signal(signal.SIGKILL))
    assert first.wait(600) == -signal.SIGKILL
    thread.join()
    time.sleep(2)  # its cluster ends with it
    before = len(steps(tmp_path))
    assert before < STEPS
    again = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert again.returncode == 0, again.stderr[-2000:]
    assert steps(tmp_path) == list(range(1, STEPS + 1))
    assert losses(tmp_path) == pytest.approx(undisturbed, rel=1e-4)
