"""Kill -9 at any moment and the same command again: every image is there exactly once."""

import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from af_pipeline.indexing import index as job
from af_pipeline.indexing import passes
from benchmarks.kill_campaign import LOCAL, RAY, SCALES, Campaign, undisturbed
from benchmarks.local_cluster import Place, environment, ray_home, tables_of
from tests.helpers.planted import index_config, source, table

# In this process: every single step on the disk


class KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class Steps:
    """Counts what Python changes below a folder; "kills" before the one that is ``deadly``."""

    CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")

    def __init__(self) -> None:
        self.folder, self.count, self.deadly, self.last = "", 0, 0, ""
        sys.addaudithook(self.see)  # for good: Python has no way to take one away

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.folder or not (event in self.CHANGES or event == "open"):
            return
        if event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        where = str(args[0])
        if event in ("os.remove", "os.rmdir") and args[1] >= 0:  # inside of rmtree
            where = str(Path(f"/proc/self/fd/{args[1]}").readlink() / where)
        if where.startswith(self.folder):
            self.count += 1
            if self.count == self.deadly:
                self.last = f"{event} {where}"
                raise KilledError

    @contextmanager
    def watched(self, folder: Path, deadly: int) -> Iterator[None]:
        self.folder, self.count, self.deadly = str(folder), 0, deadly
        try:
            yield
        finally:
            self.folder = ""


@pytest.fixture(scope="module")
def steps() -> Steps:
    return Steps()


def run(place: Place, out: Path, **changes: Any) -> job.Outcome:
    """`index` on a folder; another ``mode`` makes it another run."""
    output = {"uri": str(out), "on_conflict": "overwrite" if changes else "refuse"}
    config = index_config(place.root / "images", out, **({"output": output} | changes))
    return job.index(config, source())


def check_claim(place: Place, out: Path) -> None:
    """A run.json says that all is there."""
    if (out / "run.json").exists():
        assert sorted(table(out, "rows")["image_id"].to_pylist()) == place.names
        assert table(out, "images").num_rows == table(out, "rows").num_rows


def names_in(out: Path) -> list[str]:
    """Files, without the parts of tables."""
    return sorted(
        str(path.relative_to(out)) for path in out.rglob("*") if path.suffix != ".parquet"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # starved where other jobs hold the cores
@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("before", ["nothing", "itself", "another run"])
def test_a_kill_before_any_step_on_the_disk(tmp_path: Path, steps: Steps, before: str) -> None:
    place = Place(tmp_path, 2, {})
    changes = {"mode": "whole"} if before == "another run" else {}
    run(place, tmp_path / "expected", **changes)
    expected, files = tables_of(tmp_path / "expected"), names_in(tmp_path / "expected")
    if before != "nothing":
        run(place, tmp_path / "before")
        (tmp_path / "before/notes.txt").write_text("mine")
    for deadly in range(1, 1_000):
        out = tmp_path / f"out{deadly}"
        if before != "nothing":
            shutil.copytree(tmp_path / "before", out)
        with steps.watched(out, deadly), suppress(KilledError):
            run(place, out, **changes)
            break
        check_claim(place, out)
        # Rows of another run are no rows of this one.
        done = 0 if changes else len([*(out / "rows").glob("*.parquet")])
        outcome = run(place, out, **changes)
        assert outcome.skipped >= done, steps.last
        check_claim(place, out)
        assert tables_of(out) == expected, steps.last
        assert [name for name in names_in(out) if name != "notes.txt"] == files, steps.last
    assert deadly > 15


# Blocks that Ray gives up because a node is away are no fault of their images


@pytest.mark.usefixtures("without_ray")
def test_images_lost_again_and_again_are_done_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, whole = Place(tmp_path, 4, {}), passes.run_graph
    done = []

    def lossy(graph: Any, *rest: Any) -> None:
        listed = pq.read_table(graph.parts[0])
        done.append(listed["image_id"].to_pylist())
        if len(done) in (3, 6):
            pq.write_table(listed.slice(0, 2), tmp_path / "two.parquet")
            graph.parts = [str(tmp_path / "two.parquet")]
            whole(graph, *rest)

    monkeypatch.setattr(passes, "run_graph", lossy)
    outcome = run(place, tmp_path / "out")
    assert (outcome.totals.images, outcome.totals.errors) == (4, 0)
    assert [len(images) for images in done] == [4, 4, 4, 2, 2, 2]
    check_claim(place, tmp_path / "out")


@pytest.mark.usefixtures("without_ray")
def test_images_lost_for_ever_stop_the_run_and_are_no_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, whole = Place(tmp_path, 2, {}), passes.run_graph
    monkeypatch.setattr(passes, "run_graph", lambda *_: None)
    with pytest.raises(passes.GraphError, match="run the same command again"):
        run(place, tmp_path / "out")
    assert not list((tmp_path / "out/rows").iterdir())
    monkeypatch.setattr(passes, "run_graph", whole)
    assert run(place, tmp_path / "out").totals.errors == 0


# Whole processes


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ray_home() as home:
        yield Place(tmp_path, 40, SCALES | {"ray": RAY}, environment=environment(home))


@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.soak
@pytest.mark.parametrize("seeds", [[0], [1, 2, 3]])
def test_drivers_actors_and_workers_killed(place: Place, seeds: list[int]) -> None:
    expected, _ = undisturbed(place, place.root / "undisturbed")
    kills = []
    for seed in seeds:
        campaign = Campaign(place, place.root / f"out{seed}", seed, random.Random(seed), LOCAL)
        verdict = campaign.run(5, expected)
        assert verdict.good, (verdict, campaign.kills)
        kills += campaign.kills
    assert len(kills) == 5 * len(seeds)
    assert {kill.what for kill in kills} == set(LOCAL)
    # What is no driver is survived by the driver.
    assert {kill.outcome for kill in kills} == {"survived", "went on"}, kills
