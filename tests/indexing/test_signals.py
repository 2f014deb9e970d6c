"""Ctrl-C and SIGTERM end a job with one line and 130 or 143, whatever it is doing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.planted import index_config, picture, save
from tests.helpers.said import own_lines
from tests.helpers.training import arguments, steps

ROOT = Path(__file__).parents[2]
SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

# jobs/index.py as it is, but for the detector, and with something that lasts: a look or the tables.
INDEX = """
import runpy, sys, time
from pathlib import Path
from af_pipeline.indexing import index
from af_pipeline.indexing.stages import DetectorSource
from tests.helpers.planted import CLASS_NAMES, FakeDetector
moment, sign = sys.argv[1:3]
class Slow(FakeDetector):
    def __call__(self, crops, lane):
        if self.log:
            Path(self.log).touch()
            time.sleep(2)
        return super().__call__(crops, lane)
def publish(*_):
    Path(sign).touch()
    time.sleep(300)
options = {"log": sign if moment == "graph" else None}
index.detector_from_config = lambda _: DetectorSource(Slow, options, CLASS_NAMES, "slow")
if moment == "tables":
    index.publish = publish
sys.argv = sys.argv[2:]
runpy.run_path("jobs/index.py", run_name="__main__")
"""
ALONE = """
import sys, time
from pathlib import Path
from af_pipeline.commands import stoppable
def job():
    Path(sys.argv[1]).touch()
    time.sleep(300)
sys.exit(stoppable(job))
"""


def stop(command: list[str], begun: Path, number: signal.Signals) -> str:
    """Start it, send the signal once ``begun`` is there; what it said. Checks how it ended."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while not begun.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    ends = [line for line in said.splitlines() if line.startswith("error: ")]
    assert ends == [
        f"error: stopped by {SIGNALS[number]}; run the same command again to go on from here"
    ], said
    assert "Traceback" not in own_lines(said)  # Ray's own actors may end with one
    return said


@pytest.mark.parametrize("number", SIGNALS)
def test_a_job_without_ray(tmp_path: Path, number: signal.Signals) -> None:
    sign = tmp_path / "sign"
    said = stop([sys.executable, "-c", ALONE, str(sign)], sign, number)
    assert said.count("\n") == 1


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("graph", signal.SIGTERM),
        pytest.param("tables", signal.SIGINT, marks=pytest.mark.soak),
    ],
)
def test_indexing(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    for tag in (1, 2):
        save(tmp_path / f"images/{tag}.png", picture(tag))
    config = index_config(tmp_path / "images", tmp_path / "out", mode="whole")
    (tmp_path / "index.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    sign = tmp_path / "sign"
    command = [sys.executable, "-c", INDEX, moment, str(sign)]
    said = stop([*command, "--config", str(tmp_path / "index.yaml")], sign, number)
    assert "constructor arguments" not in said  # Ray's, at the start of every run
    assert " E " not in said


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_training_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    sets = ("optim.steps=40", "run.checkpoint_every=3")
    command = [sys.executable, str(ROOT / "jobs/train.py"), *arguments(tmp_path, *sets)]
    stop(command, tmp_path / "tiny/metrics.jsonl", signal.SIGINT)
    assert len(steps(tmp_path)) < 40
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=600)
    assert again.returncode == 0, again.stderr[-2000:]
    assert steps(tmp_path) == list(range(1, 41))
