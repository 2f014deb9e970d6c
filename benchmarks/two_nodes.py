"""Lanes routed to unlike nodes, and a node that dies: same rows as one pool on one node?

python -m benchmarks.two_nodes [--images 40] [--output FILE.json]

A head and two nodes on this machine: A has the resource lane_small, B lane_large; the pool of
small chips asks for the first, that of all others for the second. The stand-in detector logs on
which node it saw which lane. Then the same again with A killed half-way, and with B, each replaced
by a node with the same resource.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kill_campaign import NODE_CPUS, RAY, SCALES, undisturbed
from benchmarks.local_cluster import (
    PATIENCE_S,
    Driver,
    Nodes,
    Place,
    end_when_told,
    environment,
    ray_home,
    rows_of,
    run_json,
    tables_of,
)

SMALL_SIDE = 128  # lanes up to here go to A, network px
RESOURCES = {"A": "lane_small", "B": "lane_large"}
POOLS: list[dict[str, Any]] = [
    {"max_side": SMALL_SIDE, "resources": {"lane_small": 0.01}},
    {"resources": {"lane_large": 0.01}},
]


@dataclass
class Run:
    """``crops``: per node and lane; ``images``: in rows/ when the node was killed."""

    name: str
    killed: str
    images: int
    exit_code: int
    crops: dict[str, dict[int, int]]
    stages: dict[str, int]
    duplicates: int
    lost: int
    rows_equal: bool
    wrong_node: int
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the rows are those of one pool on one node, each lane seen where it belongs."""
        wrong = self.exit_code or self.duplicates or self.lost or self.wrong_node
        return self.rows_equal and not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    end_when_told()
    with tempfile.TemporaryDirectory(prefix="af-nodes-") as root:
        place = Place(Path(root), arguments.images, SCALES | {"ray": RAY})
        place.configure("routed", SCALES | {"ray": RAY | {"pools": POOLS}})
        with ray_home() as home:
            place.environment = environment(home)
            expected, crops = undisturbed(place, Path(root) / "one")
        print(f"one pool on one node: {crops} crops of {arguments.images} images", flush=True)
        runs = []
        for victim in ("", "A", "B"):
            with ray_home() as home, Nodes(home) as nodes:
                place.environment = nodes.environment
                runs.append(routed(place, nodes, victim, expected))
                report(runs[-1])
    if arguments.output:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        content = [asdict(run) for run in runs]
        Path(arguments.output).write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(run.good for run in runs) else 1


def routed(place: Place, nodes: Nodes, victim: str, expected: list[dict[str, Any]]) -> Run:
    """A run with a pool per node; ``victim`` is killed half-way and replaced."""
    for name, resource in RESOURCES.items():
        nodes.add(name, NODE_CPUS, **{resource: 1.0})
    out = place.root / f"two{victim}"
    driver = place.start(out, "routed", f"ray.address={nodes.address}")
    try:
        if victim:
            wait_for_half(place, driver, out)
        images = len(rows_of(out))
        if victim:
            nodes.kill(victim)
            nodes.add(f"{victim}2", NODE_CPUS, **{RESOURCES[victim]: 1.0})
        code = driver.wait()
        return account(place, driver, out, victim, images, code, expected)
    finally:
        driver.kill()


def wait_for_half(place: Place, driver: Driver, out: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while len(rows_of(out)) < place.images // 2:
        if driver.process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"never half-way: {driver.said.read_text()[-2000:]}")
        time.sleep(0.02)


def account(
    place: Place,
    driver: Driver,
    out: Path,
    victim: str,
    images: int,
    code: int,
    expected: list[dict[str, Any]],
) -> Run:
    crops: dict[str, dict[int, int]] = {}
    for look in driver.looks():
        own = crops.setdefault(look.node, {})
        own[look.side] = own.get(look.side, 0) + 1
    ids = Counter(rows_of(out))
    stages = run_json(out)["stages"] if code == 0 else []
    return Run(
        name=f"two nodes, {victim} killed" if victim else "two nodes",
        killed=victim,
        images=images,
        exit_code=code,
        crops=crops,
        stages={stage["stage"]: stage["chips"] for stage in stages},
        duplicates=sum(ids.values()) - len(ids),
        lost=len(set(place.names) - set(ids)),
        rows_equal=code == 0 and tables_of(out) == expected,
        wrong_node=sum(
            count
            for node, sides in crops.items()
            for side, count in sides.items()
            if (node[0] == "A") != (side <= SMALL_SIDE)
        ),
        seconds=round(driver.seconds, 1),
    )


def report(run: Run) -> None:
    when = f" at {run.images} images done" if run.killed else ""
    print(f"{run.name}{when}: {run.seconds} s, exit {run.exit_code}")
    for node, sides in sorted(run.crops.items()):
        seen = ", ".join(f"{count} of lane {side}" for side, count in sorted(sides.items()))
        print(f"    node {node:4} saw {seen}")
    print(f"    chips by stage, from run.json: {run.stages}")
    print(
        f"    rows equal {'yes' if run.rows_equal else 'NO'}, duplicates {run.duplicates}, "
        f"lost {run.lost}, crops on the wrong node {run.wrong_node}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
