"""Damage on the disk of an output and images that change: done again, never believed."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from af_pipeline.data.access import Storage
from af_pipeline.data.storage import filesystem
from af_pipeline.indexing import passes
from af_pipeline.indexing.index import index
from af_pipeline.indexing.meter import GraphError
from af_pipeline.output.folder import OutputFolder, digest
from af_pipeline.output.place import OutputError, OutputLostError
from tests.helpers.planted import index_config, source, table
from tests.helpers.s3_server import faulty_s3
from tests.helpers.small_run import BROKEN_JSON, IMAGES, NO_ROWS, TABLES, Place

pytestmark = pytest.mark.usefixtures("without_ray")


# Parts of rows/


def flip(path: Path, number: random.Random) -> None:
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    bit = number.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def outcome_of(place: Place, out: Path) -> str:
    try:
        skipped, _ = place.run(out)
    except Exception as error:
        return f"stuck: {type(error).__name__}"
    if place.tables(out) != place.expected:
        return "another result"
    return "right" if skipped == IMAGES else "done again"


@pytest.mark.parametrize("flips", [10, pytest.param(400, marks=pytest.mark.soak)])
def test_one_flipped_bit_anywhere_is_found(place: Place, flips: int) -> None:
    found: Counter[str] = Counter()
    for number in range(flips):
        seeded = random.Random(number)
        out = place.copy("flipped")
        flip(seeded.choice(sorted((out / "rows").iterdir())), seeded)
        found[outcome_of(place, out)] += 1
        shutil.rmtree(out)
    assert found == {"done again": flips}


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """A part as another program leaves it, even under the name of its bytes."""

    def damage(part: Path) -> None:
        pq.write_table(change(pq.read_table(part)), part)
        name = f"{part.name.partition('_')[0]}_{digest(part.read_bytes())}.parquet"
        part.rename(part.with_name(name))

    return damage


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": lambda part: part.write_bytes(part.read_bytes()[:100]),
    "empty": lambda part: part.write_bytes(b""),
    "zeroed": lambda part: part.write_bytes(bytes(part.stat().st_size)),
    "text": lambda part: part.write_text("I am no table\n"),
    "renamed": lambda part: part.rename(part.with_name(f"{part.stem[:-1]}.parquet")),
    "column missing": rewritten(lambda rows: rows.drop_columns(["ledger"])),
    "column more": rewritten(lambda rows: rows.append_column("more", rows["uri"])),
    "other type": rewritten(
        lambda rows: rows.set_column(3, "width", rows["width"].cast(pa.int64()))
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_put_aside_and_done_again(place: Place, damage: str) -> None:
    out = place.root / "whole"
    DAMAGE[damage](min((out / "rows").iterdir()))
    skipped, said = place.run(out)
    assert skipped == IMAGES - 4
    assert f"1 damaged parts of rows/ were put aside in {out}/damaged; their images are" in said
    (aside,) = (out / "damaged").iterdir()
    assert json.loads((out / "run.json").read_text())["damaged"] == [aside.name]
    assert place.tables(out) == place.expected
    skipped, said = place.run(out)
    assert (skipped, "damaged" in said) == (IMAGES, False)


def test_damage_and_removal_on_s3(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with faulty_s3() as server:
        storage = {"endpoint": server.url}
        system, _ = filesystem("s3://results", Storage(**storage))
        system.mkdir("results")
        output = {"uri": "s3://results/deep/out", "storage": storage, "images_per_file": 4}
        config = index_config(place.images, place.root, output=output)
        index(config, source(), Console(quiet=True))
        (part, _) = sorted(system.ls("results/deep/out/rows"))
        system.pipe_file(part, system.cat_file(part)[:-1] + b"?")
        assert index(config, source(), Console(quiet=True)).skipped == IMAGES - 4
        system.invalidate_cache()
        system.get("results/deep/out", str(place.root / "fetched"), recursive=True)
        assert place.tables(place.root / "fetched") == place.expected
        aside = [path.name for path in (place.root / "fetched/damaged").iterdir()]
        assert aside == [part.rpartition("/")[2]]
        assert json.loads((place.root / "fetched/run.json").read_text())["damaged"] == aside
        folder = OutputFolder.at("s3://results/new", Storage(**storage))
        folder = folder.open({"job": "index", "schema": 1})
        folder.check_owner()
        system.rm("results/new", recursive=True)
        with pytest.raises(OutputLostError, match="s3://results/new was removed or emptied while"):
            folder.write_part(NO_ROWS)


@pytest.mark.parametrize("lost", ["manifest.parquet", "run.json", *TABLES])
def test_what_is_not_rows_is_made_again(place: Place, lost: str) -> None:
    out = place.root / "whole"
    if lost in TABLES:
        shutil.rmtree(out / lost)
    else:
        (out / lost).unlink()
    assert place.run(out)[0] == IMAGES
    assert place.tables(out) == place.expected


def test_damage_while_the_run_goes_on_stops_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look at rows/ and the tables."""
    out = place.root / "whole"
    write_pending = passes.write_pending

    def and_damage(*arguments: Any) -> Any:
        min((out / "rows").iterdir()).write_bytes(b"")
        return write_pending(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(passes, "write_pending", and_damage)
        with pytest.raises(GraphError, match="damaged while the run went on; run the same command"):
            place.run(out)
    assert not (out / "run.json").exists()
    assert place.run(out)[0] == IMAGES - 4
    assert place.tables(out) == place.expected


# What a run was started with


@pytest.mark.parametrize("content", BROKEN_JSON)
def test_a_damaged_plan_is_named_with_the_way_on(place: Place, content: bytes) -> None:
    plan = place.root / "whole/plan.json"
    whole = plan.read_bytes()
    plan.write_bytes(content)
    with pytest.raises(OutputError, match=r"choose another output\.uri") as caught:
        place.run(place.root / "whole")
    assert str(caught.value).startswith(str(plan))
    plan.write_bytes(whole)
    assert place.run(place.root / "whole")[0] == IMAGES


def test_rows_of_another_version_of_the_program_are_refused(place: Place) -> None:
    out = place.root / "whole"
    plan = json.loads((out / "plan.json").read_text())
    plan.pop("schema")
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(OutputError, match="a run of another version of this program: resume it"):
        place.run(out)
    assert place.run(out, on_conflict="overwrite")[0] == 0
    assert place.tables(out) == place.expected


def test_an_image_stands_in_rows_once(place: Place) -> None:
    """Also where a part without its second rows is one that is there already."""
    out = place.root / "whole"
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    folder = OutputFolder.at(str(out), run_id=run_id)
    rows = table(out, "rows")
    for part in (out / "rows").iterdir():
        part.unlink()
    for numbers in ([0], [0, 1], [1], [2, 3], [3, 4], [4], [5, 6, 7], [7, 5], [6], [2]):
        folder.write_part(rows.take(pa.array(numbers)))
    assert place.run(out)[0] == IMAGES
    assert place.tables(out) == place.expected


# Bytes that change


def test_images_whose_bytes_changed_are_done_again(tmp_path: Path) -> None:
    place, out = Place(tmp_path), tmp_path / "whole"
    place.draw(3, 11)
    skipped, said = place.run(out, redo_changed=False)
    assert (skipped, "changed" in said) == (IMAGES, False)
    assert place.tables(out) == place.expected
    skipped, said = place.run(out)
    assert skipped == IMAGES - 1
    assert "1 images have changed since they were done and are done again" in said
    detections, images, _ = place.tables(out)
    assert detections["3.png"] != place.expected[0]["3.png"]
    assert images["3.png"][0]["version"] != place.expected[1]["3.png"][0]["version"]
    for name in set(images) - {"3.png"}:
        assert (detections[name], images[name]) == tuple(t[name] for t in place.expected[:2])
    assert place.run(out) == (IMAGES, "resuming: 8 of 8 images are done\n")


def test_a_version_that_is_not_known_is_no_change(place: Place) -> None:
    """As of a list: once it says none, the rows stay; so they do where they were done without."""
    out, listed = place.root / "out", place.root / "list.parquet"
    names = [f"{tag}.png" for tag in range(1, IMAGES + 1)]
    columns = {"image_id": names, "uri": [str(place.images / n) for n in names]}
    skipped = []
    for version in (None, "1", None, "1", "2"):
        more = {} if version is None else {"version": [version] * 2 + [None] * 6}
        pq.write_table(pa.table(columns | more), listed)
        config = index_config(listed, out)
        skipped.append(index(config, source(), Console(quiet=True)).skipped)
    assert skipped == [0, 8, 8, 8, 8]
    shutil.rmtree(out)
    for version, done in (("1", 0), ("2", 6)):
        more = {"version": [version] * 2 + [None] * 6, "site": range(8)}
        pq.write_table(pa.table(columns | more), listed)
        config = index_config(listed, out)
        assert index(config, source(), Console(quiet=True)).skipped == done
