"""An output folder that is gone back to: finished images stay, all else is done or refused."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from af_pipeline.core.schema import ImageRow, rows_to_table
from af_pipeline.indexing.index import index
from af_pipeline.indexing.meter import GraphError
from af_pipeline.output.account import Outcome
from af_pipeline.output.place import GO_ON, OutputError
from af_pipeline.output.tables import chips_table, detections_table
from tests.helpers.in_process import replace_ray
from tests.helpers.planted import (
    CLASS_NAMES,
    CLOCKS,
    SCENE,
    SMALL,
    by_image,
    cascade_row,
    index_config,
    picture,
    save,
    source,
    table,
)


class Place:
    """A folder of images, the output of their run and the log of what the detector saw."""

    def __init__(self, root: Path) -> None:
        self.images, self.out, self.log = root / "images", root / "out", root / "log"

    def add(self, tags: Sequence[int]) -> None:
        for tag in tags:
            save(self.images / f"{tag}.png", picture(tag, SCENE if tag % 3 else [SMALL]))

    def run(self, **changes: Any) -> tuple[Outcome, set[int]]:
        """The outcome, and the tags of the images that were looked at in this run."""
        self.log.write_text("")
        outcome = index(index_config(self.images, self.out, **changes), source(self.log))
        return outcome, {int(line) for line in self.log.read_text().split()}

    def tables(self) -> list[dict[str, Any]]:
        return [by_image(self.out, name, CLOCKS) for name in ("detections", "images", "chips")]

    def check(self) -> None:
        """What is in the tables is what the cascade finds in one go in this process."""
        config = index_config(self.images, self.out)
        rows = [cascade_row(config, path) for path in sorted(self.images.iterdir())]
        stored = rows_to_table(rows, stored=True)
        detections, images, chips = self.tables()
        assert detections == grouped(detections_table(stored, CLASS_NAMES).to_pylist())
        assert chips == grouped(chips_table(stored).to_pylist())
        check_images(images, rows)
        assert table(self.out, "rows").num_rows == len(rows)


def check_images(images: dict[str, list[Any]], rows: list[ImageRow]) -> None:
    assert list(images) == sorted(row.image_id for row in rows)
    for row in rows:
        [image] = images[row.image_id]
        assert image["status"] == "ok"
        assert image["pixels_per_scale"] == row.ledger.pixels
        assert image["num_detections"] == len(row.detections)


def grouped(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for record in records:
        found.setdefault(record["image_id"], []).append(record)
    return {key: sorted(found[key], key=str) for key in sorted(found)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def resumed(place: Place) -> tuple[Outcome, set[int]]:
    """Three images first, then seven."""
    with pytest.MonkeyPatch.context() as patch:
        replace_ray(patch)
        return three_then_seven(place)


def three_then_seven(place: Place) -> tuple[Outcome, set[int]]:
    place.add([1, 2, 3])
    first, seen = place.run()
    assert (first.totals.images, first.skipped, seen) == (3, 0, {1, 2, 3})
    place.add([4, 5, 6, 7])
    return place.run()


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_on_ray_new_images_alone_are_looked_at(tmp_path: Path) -> None:
    place = Place(tmp_path)
    outcome, seen = three_then_seven(place)
    assert (outcome.totals.images, outcome.skipped, seen) == (7, 3, {4, 5, 6, 7})
    place.check()


def test_only_new_images_are_looked_at(resumed: tuple[Outcome, set[int]], place: Place) -> None:
    outcome, seen = resumed
    assert (outcome.totals.images, outcome.skipped) == (7, 3)
    assert seen == {4, 5, 6, 7}
    place.check()
    content = json.loads((place.out / "run.json").read_text())
    assert (content["totals"]["images"], content["skipped"]) == (7, 3)


@pytest.mark.usefixtures("without_ray")
def test_a_complete_run_is_left_as_it_is(resumed: tuple[Outcome, set[int]], place: Place) -> None:
    before, parts = place.tables(), sorted((place.out / "rows").iterdir())
    # What only changes the speed or where things run may differ.
    outcome, seen = place.run(ray={"rows_per_block": 3}, max_error_rate=1)
    assert (outcome.totals.images, outcome.skipped, seen) == (7, 7, set())
    assert place.tables() == before
    assert sorted((place.out / "rows").iterdir()) == parts


@pytest.mark.usefixtures("without_ray")
def test_a_run_with_other_settings_is_refused(
    resumed: tuple[Outcome, set[int]], place: Place
) -> None:
    before = Counter(str(path) for path in place.out.rglob("*"))
    with pytest.raises(OutputError, match=r"config\.stack\.min_score: 0\.2 there, 0\.5 now"):
        place.run(stack={"min_score": 0.5})
    with pytest.raises(OutputError, match=r"config\.mode: \"autofocus\" there, \"pyramid\" now"):
        place.run(mode="pyramid")
    assert Counter(str(path) for path in place.out.rglob("*")) == before


@pytest.mark.usefixtures("without_ray")
def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.add([1])
    place.out.mkdir()
    (place.out / "thesis.txt").write_text("do not touch")
    with pytest.raises(OutputError, match=r"not empty and holds no run: choose another"):
        place.run()
    assert [path.name for path in place.out.iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("without_ray")
def test_missing_and_unreachable_outputs_are_refused(tmp_path: Path) -> None:
    nobody = {"endpoint": "http://127.0.0.1:9", "anonymous": True, "attempts": 1}
    away = {"uri": "s3://bucket/out", "storage": nobody}
    for output, reason in ((away, "output: cannot read s3://bucket/out"), ({}, "no output: give")):
        with pytest.raises(OutputError, match=reason):
            index(index_config(tmp_path / "images", tmp_path, output=output), source())


@pytest.mark.usefixtures("without_ray")
def test_another_run_is_overwritten_when_asked(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.add([1, 2])
    place.run()
    (place.out / "notes.txt").write_text("mine")
    output = {"uri": str(place.out), "on_conflict": "overwrite"}
    outcome, seen = place.run(mode="whole", output=output)
    assert (outcome.skipped, seen) == (0, {1, 2})
    assert table(place.out, "rows").num_rows == table(place.out, "images").num_rows == 2
    assert json.loads((place.out / "plan.json").read_text())["config"]["mode"] == "whole"
    assert (place.out / "notes.txt").read_text() == "mine"
    # The same run is gone on with, not begun anew.
    assert place.run(mode="whole", output=output)[1] == set()


@pytest.mark.usefixtures("without_ray")
def test_failed_images_are_done_again_when_asked(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.add([1, 2])
    good = (place.images / "2.png").read_bytes()
    (place.images / "2.png").write_bytes(b"not yet uploaded")
    assert place.run()[0].totals.errors == 1
    (place.images / "2.png").write_bytes(good)
    kept = {"uri": str(place.out), "redo_changed": False}
    assert place.run(output=kept)[0].totals.errors == 1
    outcome, seen = place.run(output=kept | {"redo_errors": True})
    assert (outcome.totals.errors, outcome.skipped, seen) == (0, 1, {2})
    place.check()


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.usefixtures("cluster")
def test_a_full_disk_stops_the_graph(tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    place = Place(tmp_path)
    place.add(range(1, 9))
    place.out = small_disk("28k") / "out"
    with pytest.raises(GraphError, match=rf"^cannot write to {place.out}: no space .*{GO_ON}$"):
        place.run(ray={"rows_per_block": 1})
    small_disk("8m")
    assert place.run()[0].totals.images == 8
    place.check()
