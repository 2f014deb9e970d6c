"""A run from S3 to S3, through a server that fails now and then: the rows of a local run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.commands.evaluate import main as evaluate
from af_pipeline.data.access import Storage
from af_pipeline.data.storage import filesystem
from af_pipeline.indexing.index import index
from af_pipeline.output.account import Outcome
from af_pipeline.settings.index import IndexConfig
from tests.helpers.in_process import replace_ray
from tests.helpers.planted import SCENE, SMALL, by_image, index_config, picture, save, source
from tests.helpers.s3_server import Fault, Server, faulty_s3

BUSY = Fault(503, "SlowDown")
NAMES = [f"{number}.png" for number in range(8)]


@dataclass
class Place:
    """A bucket with pictures and a list of them, the same on disk, and the server."""

    server: Server
    folder: Path
    system: Any

    @property
    def storage(self) -> dict[str, Any]:
        return {"endpoint": self.server.url, "attempts": 6, "timeout_s": 20}

    def put(self, name: str, tag: int) -> None:
        save(self.folder / name, picture(tag, SCENE if tag % 2 else [SMALL]))
        self.system.pipe_file(f"photos/day/{name}", (self.folder / name).read_bytes())

    def list(self, names: list[str]) -> None:
        columns = {
            "image_id": [f"id-{name}" for name in names],
            "uri": [f"day/{name}" for name in names],
            "site": pa.array([len(name) for name in names], pa.int16()),
        }
        pq.write_table(pa.table(columns), self.folder / "list.parquet")
        self.system.put_file(str(self.folder / "list.parquet"), "photos/list.parquet")

    def config(self) -> IndexConfig:
        place = {"uri": "s3://photos/list.parquet", "storage": self.storage}
        output = {"uri": "s3://results/deep/out", "storage": self.storage}
        return index_config(self.folder, self.folder, source=place, output=output)

    def fetch(self, to: Path) -> Path:
        self.system.invalidate_cache()
        self.system.get("results/deep/out", str(to), recursive=True)
        return to


@contextmanager
def made_place(folder: Path) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch, faulty_s3() as server:
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system, _ = filesystem("s3://photos", Storage(endpoint=server.url))
        system.mkdir("photos")
        system.mkdir("results")
        made = Place(server, folder, system)
        for tag, name in enumerate(NAMES):
            made.put(name, tag)
        made.list([*NAMES, "gone.png", "secret.png"])
        script = server.script
        script.fail("photos/day/1.png", BUSY, BUSY)
        script.fail("photos/day/2.png", Fault(body_bytes=20))
        script.fail("photos/day/3.png", Fault(500))
        script.fail("photos/day/secret.png", Fault(403, "AccessDenied"), always=True)
        script.fail("results/deep/out/plan.json", Fault(503, "SlowDown"))
        yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with made_place(tmp_path_factory.mktemp("pictures")) as made:
        yield made


@pytest.fixture(scope="module")
def run(place: Place) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        replace_ray(patch)
        return index(place.config(), source())


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.usefixtures("cluster")
def test_on_ray(tmp_path: Path) -> None:
    with made_place(tmp_path / "pictures") as place:
        outcome = index(place.config(), source())
        assert (outcome.totals.images, outcome.totals.errors, outcome.skipped) == (10, 2, 0)
        rows = by_image(place.fetch(tmp_path / "fetched"), "images")
        assert [rows[f"id-{name}"][0]["error"] for name in NAMES] == [""] * len(NAMES)


def plain(root: Path, name: str) -> dict[str, list[Any]]:
    without = ("decode_ms", "forward_ms", "uri", "run_id", "site", "error")
    return by_image(root, name, without)


@pytest.mark.usefixtures("without_ray")
def test_the_rows_are_those_of_a_local_run(run: Outcome, place: Place, tmp_path: Path) -> None:
    assert (run.totals.images, run.totals.errors, run.skipped) == (10, 2, 0)
    fetched = place.fetch(tmp_path / "fetched")
    assert sorted(path.name for path in fetched.iterdir()) == sorted(
        ["chips", "detections", "images", "rows", "manifest.parquet", "plan.json", "run.json"]
    )
    for name in NAMES:
        (tmp_path / "day").mkdir(exist_ok=True)
        (tmp_path / "day" / name).write_bytes((place.folder / name).read_bytes())
    listed = pq.read_table(place.folder / "list.parquet").slice(0, len(NAMES))
    pq.write_table(listed, tmp_path / "list.parquet")
    here = index_config(tmp_path, tmp_path / "here", source={"uri": str(tmp_path / "list.parquet")})
    local = index(here, source())
    for name in ("detections", "images", "chips"):
        there = plain(fetched, name)
        for lost in ("id-gone.png", "id-secret.png"):
            there.pop(lost, None)
        assert there == plain(local.root, name)


def test_what_cannot_be_read_says_why(run: Outcome, place: Place, tmp_path: Path) -> None:
    rows = by_image(place.fetch(tmp_path / "fetched"), "images")
    assert len(rows) == 10
    assert "nothing at s3://photos/day/gone.png" in rows["id-gone.png"][0]["error"]
    assert "no permission" in rows["id-secret.png"][0]["error"]
    assert [rows[f"id-{name}"][0]["error"] for name in NAMES] == [""] * len(NAMES)
    # The list's own column goes on into images/, with its type.
    assert rows["id-gone.png"][0]["site"] == len("gone.png")
    (part,) = (tmp_path / "fetched/images").iterdir()
    assert pq.read_schema(part).field("site").type == pa.int16()
    assert place.server.script.requests["photos/day/1.png"] >= 1 + 3  # uploaded, then tried


@pytest.mark.usefixtures("without_ray")
def test_a_rerun_reads_new_images_only(run: Outcome, place: Place, tmp_path: Path) -> None:
    before = dict(place.server.script.requests)
    place.put("new.png", 21)
    place.list([*NAMES, "gone.png", "secret.png", "new.png"])
    again = index(place.config(), source())
    assert (again.totals.images, again.skipped) == (11, 10)
    after = place.server.script.requests
    assert all(after[f"photos/day/{name}"] == before[f"photos/day/{name}"] for name in NAMES)
    rows = by_image(place.fetch(tmp_path / "fetched"), "images")
    assert rows["id-new.png"][0]["num_detections"] == 3
    content = json.loads((tmp_path / "fetched/run.json").read_text())
    assert "SECRET" not in json.dumps(content)


def truth_of(names: list[str]) -> dict[str, Any]:
    """What `Place.put` planted, as a COCO file; new.png has no box."""
    annotations: list[dict[str, Any]] = []
    for tag in range(len(names)):
        for one in SCENE if tag % 2 else [SMALL]:
            x0, y0, x1, y1 = one.box
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            kind = {"image_id": tag, "category_id": 1 + one.label, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **kind, **box})
    images = [
        {"id": tag, "file_name": f"id-{name}", "width": 640, "height": 480}
        for tag, name in enumerate([*names, "new.png"])
    ]
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_evaluation_reads_the_run_there(
    run: Outcome, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.server.url)
    type(place.system).clear_instance_cache()  # one without keys may stem from another test
    (tmp_path / "truth.json").write_text(json.dumps(truth_of(NAMES)))
    arguments = ["--detections", "s3://results/deep/out", "--output", str(tmp_path / "m.json")]
    assert evaluate([*arguments, "--ground-truth", str(tmp_path / "truth.json")]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["overall"]["AP50"] > 0.8
