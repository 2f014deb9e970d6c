"""Faults of an actor are no image's: it is started again, or the run stops; so does one that fails
too often. Counted is what the detectors and the rows say, never the time."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from af_pipeline.core.cascade import Prediction
from af_pipeline.data.manifest import SourceImage
from af_pipeline.indexing import passes, resume
from af_pipeline.indexing.index import dry_run, index
from af_pipeline.indexing.meter import GraphError
from af_pipeline.indexing.stages import ActorFault, DetectorSource
from tests.helpers.planted import (
    CLASS_NAMES,
    FakeDetector,
    boxes_of,
    index_config,
    picture,
    save,
    source,
    table,
)

pytestmark = pytest.mark.timeout(900)

DEAD = "CUDA error: an illegal memory access was encountered"
GONE = "no CUDA-capable device is detected"


class Breaking(FakeDetector):
    """Logs each start; answers ``lasts`` times and then, like a dead CUDA context, never again.

    It does not start more than ``most`` times.
    """

    def __init__(self, threads: int, starts: str, lasts: int, most: int = 100) -> None:
        super().__init__(threads)
        self.left = lasts
        with Path(starts).open("a") as file:
            file.write("started\n")
        if Path(starts).read_text().count("started") > most:
            raise RuntimeError(GONE)

    def __call__(self, crops: Sequence[NDArray[np.uint8]], lane: Any) -> list[Prediction]:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError(DEAD)
        return super().__call__(crops, lane)


def breaking(folder: Path, **options: Any) -> DetectorSource:
    """Its log is ``folder``/starts."""
    options["starts"] = str(folder / "starts")
    return DetectorSource(Breaking, options, CLASS_NAMES, "fake-detector-0004")


def starts(folder: Path) -> int:
    return (folder / "starts").read_text().count("started")


def pictures(folder: Path, count: int) -> None:
    for tag in range(1, count + 1):
        save(folder / "images" / f"{tag}.png", picture(tag))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_detector_that_breaks_is_started_again_and_no_image_is_blamed(tmp_path: Path) -> None:
    pictures(tmp_path, 6)
    config = index_config(tmp_path / "images", tmp_path / "out", mode="whole")
    run = index(config, breaking(tmp_path, lasts=3))
    assert (run.totals.images, run.totals.errors) == (6, 0), run.totals.first_errors
    assert len(boxes_of(run.root)) == 6
    assert starts(tmp_path) > 1


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.soak
def test_one_that_stays_broken_ends_the_run_with_no_image_marked(tmp_path: Path) -> None:
    pictures(tmp_path, 6)
    config = index_config(tmp_path / "images", tmp_path / "out", mode="whole")
    with pytest.raises(GraphError, match=rf"no actor of Detect\[s0\] works.*{GONE}"):
        index(config, breaking(tmp_path, lasts=0, most=3))
    assert not list((tmp_path / "out/rows").iterdir())
    assert 3 < starts(tmp_path) < 20


@pytest.mark.parametrize(
    ("budget", "where"),
    [(None, "without_ray"), pytest.param(1e6, "cluster", marks=pytest.mark.ray)],
)
def test_a_broken_detector_ends_samples_too(
    tmp_path: Path, budget: float | None, where: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(where)
    pictures(tmp_path, 2)
    focus = {"steps": [{}, {}], "budget": budget, "budget_per": "run"}
    config = index_config(tmp_path / "images", tmp_path / "out", focus=focus)
    with pytest.raises((GraphError, ActorFault), match=DEAD):
        dry_run(config, breaking(tmp_path, lasts=0))


@pytest.mark.parametrize(
    "where",
    ["without_ray", pytest.param("cluster", marks=[pytest.mark.ray, pytest.mark.soak])],
)
def test_a_run_with_too_many_errors_stops_and_forgets_them(
    tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(where)
    pictures(tmp_path, 1)
    folder, good = tmp_path / "images", SourceImage("1.png", str(tmp_path / "images/1.png"))
    missing = [SourceImage(f"m{n}.png", str(folder / f"m{n}.png")) for n in range(2_000)]
    config = index_config(folder, tmp_path / "out", mode="whole", ray={"rows_per_block": 1})
    with pytest.raises(GraphError) as caught:
        index(config, source(), images=[good, *missing])
    text = re.match(
        r"(\d+) of (\d+) images failed, more than max_error_rate=0.05 allows, (\d+) of them like "
        r"(m\d+\.png): .*nothing at .*\4.*same command again",
        str(caught.value),
    )
    assert text is not None, caught.value
    failed, looked, alike = map(int, text.group(1, 2, 3))
    assert failed in (looked, looked - 1)
    assert alike == failed
    assert 200 <= looked < 1_500
    errors = table(tmp_path / "out", "rows")["error"].to_pylist() if rows_in(tmp_path) else []
    assert not any(errors)
    for one in missing[:5]:
        save(Path(one.uri), picture(1))
    again = index(config, source(), images=[good, *missing[:5]])
    assert (again.totals.images, again.totals.errors) == (6, 0)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == [
        "plan.json",
        "run.json",
    ]


def rows_in(folder: Path) -> list[Path]:
    return list((folder / "out/rows").glob("*.parquet"))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_actors_live_as_long_as_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path, 8)
    # Parts of the list as of a run of ten million; in former times there was a graph for each.
    for module in (resume, passes):
        monkeypatch.setattr(module, "PART_ROWS", 2)
    config = index_config(tmp_path / "images", tmp_path / "out", mode="whole")
    run = index(config, breaking(tmp_path, lasts=100))
    assert (run.totals.images, run.totals.errors) == (8, 0)
    assert starts(tmp_path) == 1
