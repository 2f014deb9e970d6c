"""`jobs/index.py` submitted to a cluster of two nodes, each with processes of its own.

Everything runs in subprocesses with a token, ports and a temporary folder of their own, so that
neither the cluster of the other tests nor anybody else's on this machine is touched.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.local_cluster import free_ports
from tests.helpers.planted import (
    SCENE,
    index_config,
    picture,
    save,
    table,
    write_tiny_checkpoint,
)

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
READY_S = 240  # a start takes seconds, or a minute where other work has the cores
JOB_S = 450
DRIVER_EXIT_CODE = """
import sys
from ray.job_submission import JobSubmissionClient
print(JobSubmissionClient(sys.argv[1]).get_job_info(sys.argv[2]).driver_exit_code)
"""  # as in docs/CLUSTER.md


@dataclass
class Cluster:
    """Nodes started with ``ray start --block``, which end with the process that started them."""

    home: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """This process's, without what would lead Ray elsewhere."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        kept.pop("PYTHONPATH", None)  # the code comes with the job
        return kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.home / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_worker_niceness": "0",  # 15 by default: starved by any other job
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing runs when the nodes end
        }

    def start(self, *options: str) -> None:
        """A node, in a process that stays; what it says goes to a file for when it fails."""
        agent = str(free_ports(1)[0])
        command = [*RAY, "start", "--block", f"--dashboard-agent-listen-port={agent}", *options]
        command += ["--object-store-memory=100000000", "--num-gpus=0", "--disable-usage-stats"]
        with (self.home / f"node{len(self.nodes)}.log").open("wb") as log:
            self.nodes.append(
                subprocess.Popen(
                    command, env=self.environment, cwd=self.home, stdout=log, stderr=log
                )
            )

    def living_nodes(self) -> int:
        """As the dashboard knows them; 0 while it does not answer."""
        token = (self.home / "token").read_text()
        request = urllib.request.Request(
            f"{self.address}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with closing(urllib.request.urlopen(request, timeout=30)) as answer:
                found: dict[str, Any] = json.load(answer)
        except (OSError, ValueError):
            return 0
        nodes = found["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in nodes)

    def wait_for(self, count: int) -> bool:
        """Whether ``count`` nodes are there in time; False as soon as one has ended."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if any(node.poll() is not None for node in self.nodes):
                return False
            if self.living_nodes() == count:
                return True
            time.sleep(0.5)
        return False

    def logs(self) -> str:
        """What the nodes said."""
        return "\n".join(path.read_text() for path in sorted(self.home.glob("node*.log")))

    def stop(self) -> None:
        """End the nodes, workers first, and what is left of them: never anybody else's."""
        for node in reversed(self.nodes):
            node.terminate()
        for node in reversed(self.nodes):
            try:
                node.wait(60)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
        self.nodes.clear()
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid in left:
            os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Those whose command line names this cluster's own folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes()
            except OSError:  # ended meanwhile
                continue
            if f"{self.home}/".encode() in command:
                found.append(int(path.parent.name))
        return found


def start_cluster(home: Path) -> Cluster | None:
    """Head and a second node with a resource of its own; None if a port was taken meanwhile."""
    cluster = Cluster(home)
    gcs, dashboard, client = free_ports(3)
    cluster.address = f"http://127.0.0.1:{dashboard}"
    cluster.start(
        "--head",
        "--num-cpus=2",
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=true",
        f"--temp-dir={home}",
    )
    if cluster.wait_for(1):
        cluster.start(
            f"--address=127.0.0.1:{gcs}",
            "--num-cpus=1",
            '--resources={"second": 1}',
            "--node-ip-address=127.0.0.1",
            f"--temp-dir={home / '2'}",  # nodes that share one delete each other's working_dir
        )
        if cluster.wait_for(2):
            return cluster
    cluster.stop()
    return None


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    # Not pytest's folder: the paths of Ray's sockets must stay below 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="af-"))
    (home / "token").write_text(os.urandom(16).hex())
    (home / "token").chmod(0o600)
    try:
        cluster = start_cluster(home) or start_cluster(home)
        if cluster is None:
            pytest.fail(Cluster(home).logs())
        try:
            yield cluster
        finally:
            cluster.stop()
        assert cluster.processes() == []
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of random weights, a config and four pictures."""
    root = tmp_path_factory.mktemp("submit")
    write_tiny_checkpoint(root / "tiny.safetensors")
    for tag in range(4):
        save(root / f"images/{tag}.png", picture(tag, SCENE))
    # On the second node alone. Fewer tasks at a time: each starts a process of its own.
    pools = [{"num_cpus": 0.5, "threads": 1, "resources": {"second": 0.5}}]
    changes = {"mode": "whole", "ray": {"rows_per_block": 2, "task_cpus": 0.4, "pools": pools}}
    tree = index_config(root / "images", root / "out", **changes).model_dump(mode="json")
    tree["checkpoint"] = str(root / "tiny.safetensors")
    (root / "index.yaml").write_text(yaml.safe_dump(tree))
    return root


def submit(cluster: Cluster, name: str, folder: Path, *sets: str) -> subprocess.CompletedProcess:
    """``ray job submit`` as docs/CLUSTER.md has it; waits for the job."""
    job = [sys.executable, "jobs/index.py", "--config", str(folder / "index.yaml")]
    job += [part for one in sets for part in ("--set", one)]
    options = [f"--address={cluster.address}", f"--submission-id={name}", f"--working-dir={ROOT}"]
    return subprocess.run(
        [*RAY, "job", "submit", *options, "--", *job],
        env=cluster.environment,
        cwd=cluster.home,
        capture_output=True,
        text=True,
        timeout=JOB_S,
    )


def driver_exit_code(cluster: Cluster, name: str) -> str:
    command = [sys.executable, "-c", DRIVER_EXIT_CODE, cluster.address, name]
    done = subprocess.run(
        command, env=cluster.environment, capture_output=True, text=True, timeout=JOB_S
    )
    return done.stdout.strip() or done.stderr


def test_a_job_on_two_nodes_is_complete_and_its_log_is_streamed(
    two_nodes: Cluster, folder: Path
) -> None:
    done = submit(two_nodes, "good", folder)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said + two_nodes.logs()
    assert "images      4 (0 errors, 0 done before)" in done.stdout, said
    assert f"output      {folder / 'out'}" in done.stdout
    assert "Job 'good' succeeded" in said
    assert sorted(table(folder / "out", "images")["image_id"].to_pylist()) == [
        f"{tag}.png" for tag in range(4)
    ]
    assert json.loads((folder / "out/run.json").read_text())["totals"]["images"] == 4


def test_a_job_that_cannot_run_fails_with_one_line_and_its_own_exit_code(
    two_nodes: Cluster, folder: Path
) -> None:
    done = submit(two_nodes, "bad", folder, "source.uri=nowhere", f"output.uri={folder}/never")
    said = done.stdout + done.stderr
    assert done.returncode == 1, said  # Ray's own, whatever the driver's
    streamed, _, _ = done.stdout.partition("Job 'bad' failed")  # then Ray repeats the last lines
    errors = [line for line in streamed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "there is nothing at nowhere" in errors[0]
    assert "Traceback" not in said
    assert driver_exit_code(two_nodes, "bad") == "2"
    assert not (folder / "never").exists()
