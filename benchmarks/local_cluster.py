"""Runs of `jobs/index.py` that may be killed: drivers and Ray nodes with processes of their own.

Shared by `benchmarks/kills.py`, `benchmarks/two_nodes.py` and tests/indexing/test_kills.py. Nothing
here touches a process that does not descend from one started here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from af_pipeline.config import dump_config
from af_pipeline.core.cascade import Prediction
from af_pipeline.indexing.stages import DetectorSource
from tests.helpers.planted import (
    CLASS_NAMES,
    CLOCKS,
    SCENE,
    SMALL,
    FakeDetector,
    by_image,
    index_config,
    picture,
    save,
)

ROOT = Path(__file__).parents[1]
DRIVER = "import sys; from benchmarks.local_cluster import drive; sys.exit(drive(sys.argv[1:]))"
PATIENCE_S = 300  # for what takes seconds where the cores are free


class StandIn(FakeDetector):
    """The planted detector, slowed down; logs picture, node and larger side of the lane."""

    def __init__(self, threads: int, log: str, pause_s: float) -> None:
        super().__init__(threads)
        cv2.setNumThreads(1)
        self.log_file, self.pause_s = log, pause_s

    def __call__(self, crops: Sequence[NDArray[np.uint8]], lane: Any) -> list[Prediction]:
        """As the planted one."""
        node, side = os.environ.get("AF_NODE", "local"), max(lane.height, lane.width)
        for crop in crops:
            with Path(self.log_file).open("a") as file:
                file.write(f"{int(np.median(crop[..., 2]))} {node} {side}\n")
        time.sleep(self.pause_s * len(crops))
        return super().__call__(crops, lane)


def drive(argv: Sequence[str]) -> int:
    """`jobs/index.py` as it is, but for the detector: LOG PAUSE_S and its own arguments."""
    from af_pipeline.commands.index import main
    from af_pipeline.indexing import index

    options = {"log": argv[0], "pause_s": float(argv[1])}
    source = DetectorSource(StandIn, options, CLASS_NAMES, "stand-in-0001")
    index.detector_from_config = lambda config: source
    return main(argv[2:])


@dataclass(frozen=True)
class Look:
    """One crop that a stand-in saw."""

    image: str
    node: str
    side: int


@dataclass
class Place:
    """Pictures and a config; each output folder beside them has logs of its own."""

    root: Path
    images: int
    changes: dict[str, Any]
    pause_s: float = 0.05
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tag in range(1, self.images + 1):
            planted = SCENE if tag % 3 else [SMALL]
            save(self.root / "images" / f"{tag:03d}.png", picture(tag, planted))
        self.configure("config", self.changes)

    @property
    def names(self) -> list[str]:
        """The ids of all pictures."""
        return [f"{tag:03d}.png" for tag in range(1, self.images + 1)]

    def configure(self, name: str, changes: dict[str, Any]) -> None:
        """Write a config that differs from the planted one by ``changes``."""
        config = index_config(self.root / "images", Path("unset"), **changes)
        (self.root / f"{name}.yaml").write_text(yaml.safe_dump(dump_config(config)))

    def start(self, out: Path, config: str = "config", *sets: str) -> Driver:
        """Start the job on ``out``, or go on with it."""
        number = len(list(out.parent.glob(f"{out.name}-*.said")))
        log = out.parent / f"{out.name}-{number}.log"
        log.touch()
        command = [sys.executable, "-c", DRIVER, str(log), str(self.pause_s)]
        command += ["--config", str(self.root / f"{config}.yaml")]
        for one in (f"output.uri={out}", *sets):
            command += ["--set", one]
        said = log.with_suffix(".said")
        with said.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=file, stderr=file
            )
        return Driver(process, log, said, time.monotonic())


@dataclass
class Driver:
    """One start of the job."""

    process: subprocess.Popen[bytes]
    log: Path
    said: Path
    began: float

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began

    def looks(self) -> list[Look]:
        """What the detectors of this start saw so far."""
        return looks_in(self.log)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """Kill it and its own cluster."""
        below = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        kill_all(below)


def looks_in(log: Path) -> list[Look]:
    """Lines of a log; a kill may cut the last one."""
    lines = log.read_text().splitlines(keepends=True)
    words = [line.split() for line in lines if line.endswith("\n")]
    return [Look(f"{int(tag):03d}.png", node, int(side)) for tag, node, side in words]


def rows_of(out: Path) -> list[str]:
    """The ids in rows/ now, parts that are not whole left out."""
    found: list[str] = []
    for path in sorted((out / "rows").glob("*.parquet")):
        with suppress(pa.ArrowInvalid, OSError):
            found += pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
    return found


def tables_of(out: Path) -> list[dict[str, Any]]:
    """What a run found, without its clocks, in an order that does not depend on its parts."""
    return [by_image(out, name, CLOCKS) for name in ("detections", "images", "chips")]


def run_json(out: Path) -> dict[str, Any]:
    """What the run says of itself."""
    content: dict[str, Any] = json.loads((out / "run.json").read_text())
    return content


# Processes


@dataclass(frozen=True)
class Process:
    """A process that was there; ``born`` tells it from a later one of its number."""

    pid: int
    born: str
    title: str


def descendants(ancestor: int) -> list[Process]:
    """All processes below ``ancestor``."""
    found: dict[int, Process] = {}
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if words[0] != "Z":
                found[int(folder.name)] = Process(int(folder.name), words[19], title.strip())
                parents[int(folder.name)] = int(words[1])
    below = {ancestor}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in below} - below
        below |= more
        grown = bool(more)
    return [found[pid] for pid in sorted(below - {ancestor})]


def kill_all(processes: Sequence[Process]) -> None:
    """Kill those of them that are still there."""
    for process in processes:
        with suppress(OSError):
            words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            if words[19] == process.born:
                os.kill(process.pid, signal.SIGKILL)


def end_when_told() -> None:
    """Take SIGTERM for an error, so that what was started is ended too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))


@contextmanager
def ray_home() -> Iterator[Path]:
    """A folder for Ray's files; its path is short, as those of Ray's sockets must be."""
    home = Path(tempfile.mkdtemp(prefix="af-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def environment(home: Path) -> dict[str, str]:
    """This process's, without what would lead Ray elsewhere."""
    token = home / "token"
    if not token.exists():
        token.write_text(os.urandom(16).hex())
        token.chmod(0o600)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",  # 15 by default: starved by any other job
        "OMP_NUM_THREADS": "1",
    }


# Nodes


@dataclass
class Node:
    """``ray start --block`` and what is below it."""

    name: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Kill its raylet, as a machine that fails; the rest of the node ends of itself."""
        below = descendants(self.process.pid)
        (raylet,) = (one for one in below if "/raylet/raylet " in f"{one.title} ")
        os.kill(raylet.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self.end(below)

    def end(self, below: Sequence[Process] = ()) -> None:
        """Kill whatever of it is left."""
        below = [*below, *descendants(self.process.pid)]
        self.process.kill()
        self.process.wait()
        kill_all(below)


class Nodes:
    """A cluster on this machine: a head, and nodes with resources of their own."""

    def __init__(self, home: Path) -> None:
        self.home, self.environment = home, environment(home)
        self.nodes: dict[str, Node] = {}

    def __enter__(self) -> Nodes:
        """Start the head; it runs the driver and what has to be beside it only."""
        gcs, client, dashboard = free_ports(3)
        self.address = f"127.0.0.1:{gcs}"
        ports = (f"--port={gcs}", f"--ray-client-server-port={client}")
        try:
            self._start(
                "head",
                ("--head", *ports, f"--dashboard-port={dashboard}", "--include-dashboard=false"),
                0,
            )
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add(self, name: str, cpus: float, **resources: float) -> None:
        """Add a node; its name is what its detectors log."""
        own = json.dumps(resources)
        self._start(name, (f"--address={self.address}", f"--resources={own}"), cpus)

    def kill(self, name: str) -> None:
        """Kill a node."""
        self.nodes.pop(name).kill()

    def stop(self) -> None:
        """End all of it."""
        for node in reversed(self.nodes.values()):
            node.end()
        self.nodes.clear()

    def processes(self, name: str) -> list[Process]:
        """Those of a node."""
        return descendants(self.nodes[name].process.pid)

    def _start(self, name: str, options: Sequence[str], cpus: float) -> None:
        (agent,) = free_ports(1)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += [f"--num-cpus={cpus:g}", "--num-gpus=0", "--object-store-memory=200000000"]
        command += [f"--dashboard-agent-listen-port={agent}", "--node-ip-address=127.0.0.1"]
        command += [f"--temp-dir={self.home / name}", "--disable-usage-stats"]
        said = self.home / f"{name}.said"
        with said.open("wb") as file:
            process = subprocess.Popen(
                command,
                env=self.environment | {"AF_NODE": name},
                cwd=self.home,
                stdout=file,
                stderr=file,
            )
        self.nodes[name] = Node(name, process)
        deadline = time.monotonic() + PATIENCE_S
        while "Ray runtime started" not in said.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"node {name} did not start: {said.read_text()[-2000:]}")
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
