"""Campaigns of kills: one output folder, its driver, actors, workers and nodes killed on the way.

Used by `benchmarks/kills.py` and tests/indexing/test_kills.py.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.local_cluster import (
    PATIENCE_S,
    Driver,
    Nodes,
    Place,
    Process,
    descendants,
    kill_all,
    rows_of,
    run_json,
    tables_of,
)

LOCAL = ("driver", "actor", "driver", "worker")
CLUSTER = ("node", "actor", "driver", "worker")
NODE_CPUS = 2.0
ACTOR = re.compile(r"^ray::\w*(Worker|Counter|Actor|Tracker|Reader|Requester)\b")
WORKER = re.compile(r"^ray::(?!\w*(Worker|Counter|Actor|Tracker|Reader|Requester|Agent)\b)")
START_UP_S = 12.0  # about what a start takes before it looks at anything

# Two scales, for every actor is a process to start.
SCALES: dict[str, Any] = {
    "pyramid": [
        {"factor": 0.5, "valid_range": [72, -1]},
        {"factor": 1.0, "valid_range": [-1, 72]},
    ],
    "focus": {"steps": [{"min_size": 64}]},
}
RAY: dict[str, Any] = {"rows_per_block": 2}


@dataclass
class Kill:
    """What was killed when; ``images``: finished ones at that moment."""

    campaign: int
    start: int
    what: str
    process: str
    moment: str
    seconds: float
    images: int
    outcome: str = ""


@dataclass
class Verdict:
    """A campaign's end. ``recomputed``: images looked at again although rows/ had them."""

    campaign: int
    starts: int
    exit_code: int
    rows_equal: bool
    duplicates: int
    lost: int
    recomputed: int
    skipped: int
    done_before: int
    leftovers: list[str]
    crops: int

    @property
    def good(self) -> bool:
        """Whether every image is there exactly once, as if nothing had happened."""
        told = self.skipped >= self.done_before
        wrong = self.exit_code or self.duplicates or self.lost or self.recomputed or self.leftovers
        return self.rows_equal and told and not wrong


@dataclass(frozen=True)
class Moment:
    """When to kill."""

    text: str
    reached: Callable[[], bool]


@dataclass
class Campaign:
    """One output folder and the kills on the way to its end."""

    place: Place
    out: Path
    number: int
    rng: random.Random
    kinds: Sequence[str]
    sets: tuple[str, ...] = ()
    nodes: Nodes | None = None
    kills: list[Kill] = field(default_factory=list)
    crops: int = 0
    recomputed: int = 0
    starts: int = 0
    replaced: int = 0
    driver: Driver | None = None
    orphans: list[Process] = field(default_factory=list)

    def run(self, count: int, expected: list[dict[str, Any]]) -> Verdict:
        """Kill ``count`` times, the last time while the tables are published; then compare."""
        try:
            for number in range(count - 1):
                self.kill_one(self.kinds[number % len(self.kinds)])
            self.kill_publishing()
            code = self.finish()
            return self.verdict(code, expected)
        finally:
            if self.driver:
                self.driver.kill()
            kill_all(self.orphans)

    # One kill

    def kill_one(self, kind: str) -> None:
        """Kill one of ``kind``, or the driver where the run ends before."""
        while True:
            driver = self.driver_there()
            if kind != "driver" and len(self.done) == self.place.images:
                kind = "driver"  # nothing is left to do for anything else
            moment = self.any_moment(driver, kind)
            if self.wait(driver, moment) and self.strike(driver, kind, moment):
                return
            if driver.process.poll() is not None:
                self.ended()

    def kill_publishing(self) -> None:
        """Kill the driver while it publishes, or when it just has."""
        late = False
        while True:
            driver = self.driver_there()
            moment = self.publishing(late)
            if self.wait(driver, moment) and self.strike(driver, "driver", moment):
                return
            # Gone by too fast to be seen.
            late = self.ended() == 0

    def wait(self, driver: Driver, moment: Moment) -> bool:
        """Whether the moment comes before the driver's end."""
        end = time.monotonic() + PATIENCE_S
        while driver.process.poll() is None:
            if moment.reached():
                return True
            if time.monotonic() > end:
                raise TimeoutError(f"no {moment.text}: {driver.said.read_text()[-2000:]}")
            time.sleep(0.001)
        return False

    def strike(self, driver: Driver, kind: str, moment: Moment) -> bool:
        """Kill; whether there was something to kill."""
        if kind == "driver":
            # Held still first: the books below take longer than what is to be hit.
            driver.process.send_signal(signal.SIGSTOP)
            victim, act = "the job", partial(self.kill_driver, driver)
        elif kind == "node":
            victim = self.rng.choice(self.names_of_nodes()[1:])  # the head holds the driver
            act = partial(self.replace_node, victim)
        else:
            found = self.processes(driver, ACTOR if kind == "actor" else WORKER)
            if not found:
                return False
            chosen = self.rng.choice(found)
            os.kill(chosen.pid, signal.SIGSTOP)
            victim, act = chosen.title.removeprefix("ray::"), partial(kill_all, [chosen])
        self.settle_last("survived")
        seconds, images = round(driver.seconds, 1), len(self.done)
        self.kills.append(
            Kill(self.number, self.starts, kind, victim, moment.text, seconds, images)
        )
        act()
        return True

    def kill_driver(self, driver: Driver) -> None:
        """It alone: what still runs for it, meets the next start."""
        self.orphans += descendants(driver.process.pid)
        driver.process.kill()
        self.ended()

    def replace_node(self, name: str) -> None:
        """Kill a node and start another one like it."""
        assert self.nodes is not None
        self.nodes.kill(name)
        self.replaced += 1
        self.nodes.add(f"{name[:2]}-{self.replaced}", NODE_CPUS)

    # The state of things

    @property
    def done(self) -> set[str]:
        """Images in rows/."""
        return set(rows_of(self.out))

    def driver_there(self) -> Driver:
        """The one that runs, or a new one."""
        if self.driver is None:
            self.done_before = self.done
            self.parts_before = set(self.parts())
            self.began = time.time()
            self.driver = self.place.start(self.out, "config", *self.sets)
            self.starts += 1
        return self.driver

    def ended(self) -> int:
        """Account for a driver that ended: its exit code."""
        driver = self.driver
        assert driver is not None
        code = driver.wait()
        looks = driver.looks()
        self.crops += len(looks)
        self.recomputed += len({look.image for look in looks} & self.done_before)
        if code == -signal.SIGKILL:
            self.settle_last("went on")
        elif code == 0:
            self.settle_last("survived")
        else:
            said = driver.said.read_text().strip().splitlines()[-1:]
            self.settle_last(f"driver gave up with {code}: {' '.join(said)[:200]}")
        self.driver = None
        return code

    def settle_last(self, outcome: str) -> None:
        """Say how the last kill went, once that is known."""
        if self.kills and not self.kills[-1].outcome:
            self.kills[-1].outcome = outcome

    def finish(self) -> int:
        """Let the job come to its end."""
        self.driver_there().wait()
        return self.ended()

    def parts(self) -> list[str]:
        """Names in rows/, half-written ones too."""
        try:
            return os.listdir(self.out / "rows")  # noqa: PTH208 (a thousand times a second)
        except FileNotFoundError:
            return []

    def fresh(self, pattern: str) -> bool:
        """Whether this start has written something of this name."""
        try:
            return any(path.stat().st_mtime >= self.began for path in self.out.glob(pattern))
        except FileNotFoundError:  # it has got its name meanwhile
            return True

    def looked_at(self) -> int:
        """Images that this start has begun with."""
        assert self.driver is not None
        return len({look.image for look in self.driver.looks()})

    def processes(self, driver: Driver, title: re.Pattern[str]) -> list[Process]:
        """Ray's, in the order of their titles."""
        if self.nodes is None:
            found = descendants(driver.process.pid)
        else:
            found = [one for name in self.nodes.nodes for one in self.nodes.processes(name)]
        return sorted((one for one in found if title.match(one.title)), key=lambda one: one.title)

    def names_of_nodes(self) -> list[str]:
        """The head first."""
        return list(self.nodes.nodes) if self.nodes else []

    # Moments

    def any_moment(self, driver: Driver, kind: str) -> Moment:
        """One of the start-up (of a driver) or of the graph."""
        left = self.place.images - len(self.done)
        choices = ["looked", "parts"]
        if kind == "driver":
            choices = ["seconds", "list"] + choices * 2 if left else ["seconds"]
        chosen = self.rng.choice(choices)
        if chosen == "seconds":
            seconds = driver.seconds + self.rng.uniform(0, START_UP_S)
            return Moment(f"{seconds:.1f} s after the start", lambda: driver.seconds >= seconds)
        if chosen == "list":
            return Moment("as the list of what is left is made", lambda: self.fresh("todo"))
        more = 1 + self.rng.randrange(max(1, left // 6))
        if chosen == "looked":
            looked = self.looked_at() + more
            return Moment(f"{looked} images looked at", lambda: self.looked_at() >= looked)
        count = len(set(self.parts()) - self.parts_before) + max(1, more // 2)
        return Moment(
            f"as part {count} appears", lambda: len(set(self.parts()) - self.parts_before) >= count
        )

    def publishing(self, late: bool) -> Moment:
        """One of the writing of tables; ``late``: one that cannot be missed."""
        moments = {
            "detections/ half written": "detections/*.partial",
            "first table in place": "detections/*.parquet",
            "images/ begun": "images/*.parquet*",
            "run.json half written": "run.json.partial",
            "run.json there": "run.json",
        }
        text = "run.json there" if late else self.rng.choice(list(moments))
        return Moment(text, lambda: self.fresh(moments[text]))

    # The end

    def verdict(self, code: int, expected: list[dict[str, Any]]) -> Verdict:
        """Compare with an undisturbed run."""
        ids = Counter(rows_of(self.out))
        return Verdict(
            campaign=self.number,
            starts=self.starts,
            exit_code=code,
            rows_equal=code == 0 and tables_of(self.out) == expected,
            duplicates=sum(ids.values()) - len(ids),
            lost=len(set(self.place.names) - set(ids)),
            recomputed=self.recomputed,
            skipped=run_json(self.out)["skipped"] if code == 0 else -1,
            done_before=len(self.done_before),
            leftovers=sorted(
                str(path.relative_to(self.out))
                for pattern in ("todo", "*.partial", "*/*.partial")
                for path in self.out.glob(pattern)
            ),
            crops=self.crops,
        )


def undisturbed(place: Place, out: Path) -> tuple[list[dict[str, Any]], int]:
    """The tables of a run that nothing happens to, and how many crops it looked at."""
    driver = place.start(out)
    try:
        if driver.wait():
            raise RuntimeError(driver.said.read_text()[-2000:])
        return tables_of(out), len(driver.looks())
    finally:
        driver.kill()
