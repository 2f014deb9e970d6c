"""Kill drivers, actors, worker processes and nodes of index runs; is every image there once?

python -m benchmarks.kills [--kills 60] [--seed 0] [--output FILE.json]

A campaign is one output folder. Its job is started, something is killed at a random moment of
its progress, and so on; a killed driver is started again at once with the same command, all else
has to be survived by the same driver. At the end the folder is compared with an undisturbed run.
Campaigns take turns: a local Ray that dies with its driver; a cluster of a head and two nodes
that outlives it. Pictures and detector are the tests' (a stand-in that pauses at each crop).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kill_campaign import (
    CLUSTER,
    LOCAL,
    NODE_CPUS,
    RAY,
    SCALES,
    Campaign,
    Kill,
    Verdict,
    undisturbed,
)
from benchmarks.local_cluster import Nodes, Place, end_when_told, environment, ray_home

IMAGES = 40
KILLS_PER_CAMPAIGN = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    end_when_told()
    rng = random.Random(arguments.seed)
    kills: list[Kill] = []
    verdicts: list[Verdict] = []
    with ray_home() as home, tempfile.TemporaryDirectory(prefix="af-kills-") as root:
        place = Place(Path(root), IMAGES, SCALES | {"ray": RAY}, environment=environment(home))
        expected, crops = undisturbed(place, Path(root) / "undisturbed")
        print(f"undisturbed: {crops} crops of {IMAGES} images", flush=True)
        while (left := arguments.kills - len(kills)) > 0:
            number = len(verdicts) + 1
            campaign = Campaign(place, Path(root) / f"out{number}", number, rng, LOCAL)
            count = min(left, KILLS_PER_CAMPAIGN)
            verdict = (run_on_nodes if number % 2 == 0 else run_locally)(campaign, count, expected)
            kills += campaign.kills
            verdicts.append(verdict)
            report(campaign.kills, verdict)
    if arguments.output:
        content = {"undisturbed_crops": crops, "kills": kills, "campaigns": verdicts}
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output).write_text(json.dumps(content, indent=2, default=asdict) + "\n")
    good = sum(verdict.good for verdict in verdicts)
    print(f"{len(kills)} kills, {good} of {len(verdicts)} campaigns as if nothing had happened")
    return 0 if good == len(verdicts) else 1


def run_locally(campaign: Campaign, count: int, expected: list[dict[str, Any]]) -> Verdict:
    return campaign.run(count, expected)


def run_on_nodes(campaign: Campaign, count: int, expected: list[dict[str, Any]]) -> Verdict:
    with ray_home() as home, Nodes(home) as nodes:
        for name in ("n1", "n2"):
            nodes.add(name, NODE_CPUS)
        campaign.nodes, campaign.kinds = nodes, CLUSTER
        campaign.sets = (f"ray.address={nodes.address}",)
        campaign.place.environment, before = nodes.environment, campaign.place.environment
        try:
            return campaign.run(count, expected)
        finally:
            campaign.place.environment = before


def report(kills: Sequence[Kill], verdict: Verdict) -> None:
    for number, kill in enumerate(kills, 1):
        when = f"{kill.seconds:6.1f} s {kill.images:3} done  {kill.moment:28.28}"
        print(
            f"{kill.campaign:3}.{number:<2} start {kill.start:<2} {kill.what:7} "
            f"{kill.process:42.42} {when} {kill.outcome}"
        )
    print(
        f"    campaign {verdict.campaign}: {verdict.starts} starts, rows equal "
        f"{'yes' if verdict.rows_equal else 'NO'}, duplicates {verdict.duplicates}, lost "
        f"{verdict.lost}, finished images looked at again {verdict.recomputed}, crops "
        f"{verdict.crops}, last start skipped {verdict.skipped} of {verdict.done_before} done"
        + (f", LEFT: {verdict.leftovers}" if verdict.leftovers else ""),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
