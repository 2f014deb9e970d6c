"""Images that kill the process that looks at them cost themselves and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from af_pipeline.core.cascade import Prediction
from af_pipeline.indexing.index import index
from af_pipeline.indexing.meter import GraphError
from af_pipeline.indexing.stages import DetectorSource
from af_pipeline.output.account import Outcome
from tests.helpers.planted import (
    CLASS_NAMES,
    KILLS,
    LARGE,
    MIDDLE,
    SCENE,
    FakeDetector,
    Planted,
    boxes_of,
    index_config,
    picture,
    save,
    source,
    table,
)

# Every death costs a new worker process, which takes long where other jobs hold the cores.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.usefixtures("cluster")]


# Each death costs a restart, so there are no more scales than needed.
TWO_SCALES: dict[str, Any] = {
    "pyramid": [
        {"factor": 0.5, "valid_range": [72, -1]},
        {"factor": 1.0, "valid_range": [-1, 72]},
    ],
    "focus": {"steps": [{"min_size": 64}]},
}


def run_with(
    folder: Path, deadly: dict[str, list[Planted]], fine: list[str], **changes: Any
) -> Outcome:
    for number, name in enumerate(fine, 1):
        save(folder / "images" / name, picture(number, SCENE))
    for name, planted in deadly.items():
        save(folder / "images" / name, picture(KILLS, planted))
    return index(index_config(folder / "images", folder / "out", **changes), source())


def check(run: Outcome, deadly: set[str], fine: set[str]) -> None:
    rows = {r["image_id"]: r for r in table(run.root, "images").to_pylist()}
    assert set(rows) == deadly | fine
    assert run.totals.images == table(run.root, "images").num_rows
    for name in deadly:
        assert "worker process died" in rows[name]["error"]
        assert rows[name]["num_detections"] == 0
    assert all(rows[name]["error"] == "" for name in fine)
    found = boxes_of(run.root)
    assert set(found) == fine
    assert all(len(boxes) == 3 for boxes in found.values())
    assert (run.root / "run.json").exists()
    assert not (run.root / "todo.parquet").exists()


def test_images_that_kill_in_two_stages(tmp_path: Path) -> None:
    # MIDDLE looks large enough to kill at the second scale only.
    deadly = {"b.png": [LARGE], "d.png": [MIDDLE]}
    run = run_with(tmp_path, deadly, ["a.png", "c.png", "e.png"], **TWO_SCALES)
    check(run, set(deadly), {"a.png", "c.png", "e.png"})


@pytest.mark.soak
def test_nothing_but_images_that_kill(tmp_path: Path) -> None:
    run = run_with(tmp_path, {"a.png": [LARGE], "b.png": [LARGE]}, [], mode="whole")
    check(run, {"a.png", "b.png"}, set())


def no_weights(threads: int, **options: Any) -> Any:
    raise RuntimeError("out of memory on this card")


def test_a_detector_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture(1, SCENE))
    broken = DetectorSource(no_weights, {}, CLASS_NAMES, "fake-detector-0002")
    config = index_config(tmp_path / "images", tmp_path / "out", mode="whole")
    with pytest.raises(GraphError, match=r"out of memory on this card.*run the same command again"):
        index(config, broken)


class Overflowing(FakeDetector):
    """Answers what fits no row: a failure that is nobody's death and no image's fault."""

    def predict(self, crop: NDArray[np.uint8]) -> Prediction:
        return replace(super().predict(crop), padded=2**70)


def test_what_is_no_death_is_told_and_blamed_on_no_image(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", picture(1, SCENE))
    broken = DetectorSource(Overflowing, {}, CLASS_NAMES, "fake-detector-0003")
    config = index_config(tmp_path / "images", tmp_path / "out", mode="whole")
    with pytest.raises(GraphError, match=r"the graph stopped: .*(OverflowError|too large)"):
        index(config, broken)
    assert not list((tmp_path / "out/rows").iterdir())
