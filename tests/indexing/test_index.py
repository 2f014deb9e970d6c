"""An index run: planted objects, hostile files, the tables, the modes; the same on a real Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from af_pipeline.core.schema import CHIPS, DETECTIONS, IMAGES, STORED_ROW, rows_to_table
from af_pipeline.indexing.index import index
from af_pipeline.output.account import Outcome, summary
from af_pipeline.output.tables import chips_table, detections_table
from af_pipeline.settings.index import IndexConfig
from tests.helpers.in_process import replace_ray
from tests.helpers.planted import (
    CLASS_NAMES,
    RAISES,
    SCENE,
    SMALL,
    Planted,
    boxes_of,
    by_image,
    cascade_row,
    index_config,
    picture,
    save,
    source,
    table,
)

PLAIN = ("plain_1.png", "plain_2.png", "dark.png")
WHITE = (Planted((64, 80, 164, 180), 1), Planted((320, 360, 344, 380), 1))


def write_collection(folder: Path) -> Path:
    """Good, odd and broken files, and a COCO file that lists them all and one more."""
    for tag, name in enumerate(PLAIN, 1):
        save(folder / name, picture(tag, () if name == "dark.png" else SCENE))
    save(folder / "deep/sub folder/ünïcode.png", picture(4, [SMALL]))
    save(folder / "raises.png", picture(RAISES))
    grey = picture(0, WHITE)[..., 1]
    save(folder / "grey.jpg", grey, quality=95)
    save(folder / "cmyk.jpg", Image.fromarray(picture(0)).convert("CMYK"), quality=95)
    opaque = np.full((480, 640, 1), 255, np.uint8)
    save(folder / "rgba.png", np.concatenate([picture(5), opaque], 2))
    save(folder / "deep16.png", grey.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees
    save(folder / "turned.jpg", np.rot90(picture(0)).copy(), exif=exif, quality=95)
    save(folder / "one_pixel.png", np.zeros((1, 1, 3), np.uint8))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("I am no picture\n")
    whole = (folder / "grey.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.*g"))]
    images = [{"id": i, "file_name": name} for i, name in enumerate([*names, "missing.jpg"])]
    (folder / "all.json").write_text(json.dumps({"images": images}))
    return folder / "all.json"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> IndexConfig:
    root = tmp_path_factory.mktemp("index")
    return index_config(write_collection(root / "images"), root / "out")


@pytest.fixture(scope="module")
def run(config: IndexConfig) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        replace_ray(patch)
        return index(config, source())


def status_of(run: Outcome) -> dict[str, str]:
    """image_id -> its error, '' where there is none."""
    records = table(run.root, "images").to_pylist()
    assert all((r["status"] == "error") == bool(r["error"]) for r in records)
    return {r["image_id"]: r["error"] for r in records}


def check_found(found: list[tuple[str, np.ndarray]], planted: tuple[Planted, ...]) -> None:
    expected = sorted((CLASS_NAMES[one.label], *one.box) for one in planted)
    assert [label for label, _ in found] == [label for label, *_ in expected]
    for (_, box), (_, *truth) in zip(found, expected, strict=True):
        np.testing.assert_allclose(box, truth, atol=2)


def test_planted_objects_are_found(run: Outcome) -> None:
    found = boxes_of(run.root)
    for name in ("plain_1.png", "plain_2.png", "rgba.png", "cmyk.jpg", "turned.jpg"):
        check_found(found[name], SCENE)
    for name in ("grey.jpg", "deep16.png"):
        check_found(found[name], WHITE)
    check_found(found["deep/sub folder/ünïcode.png"], (SMALL,))
    assert len(found) == 8
    scales = {r["scale"] for r in table(run.root, "detections").to_pylist()}
    assert scales == {0, 1, 2}


def test_every_image_is_one_row(run: Outcome) -> None:
    status = status_of(run)
    assert table(run.root, "images").num_rows == len(status) == run.totals.images == 15
    errors = {name: error for name, error in status.items() if error}
    assert set(errors) == {"raises.png", "empty.jpg", "text.jpg", "cut.jpg", "missing.jpg"}
    assert "planted failure" in errors["raises.png"]
    assert "empty file" in errors["empty.jpg"]
    assert "not an image" in errors["text.jpg"]
    assert "truncated" in errors["cut.jpg"]
    assert "nothing at" in errors["missing.jpg"]
    assert run.totals.errors == 5
    assert run.error_rate == 5 / 15


def test_images_carry_their_size_and_cost(run: Outcome) -> None:
    rows = {r["image_id"]: r for r in table(run.root, "images").to_pylist()}
    for name in ("dark.png", "turned.jpg", "plain_1.png"):
        assert (rows[name]["width"], rows[name]["height"]) == (640, 480)
    assert (rows["one_pixel.png"]["width"], rows["one_pixel.png"]["height"]) == (1, 1)
    dark, plain = rows["dark.png"], rows["plain_1.png"]
    assert (dark["num_detections"], dark["num_chips"]) == (0, 0)
    assert dark["pixels_per_scale"] == [320 * 240, 0, 0]
    assert dark["pixels_pyramid"] == plain["pixels_pyramid"] == 320 * 240 * (1 + 4 + 16)
    assert (plain["num_detections"], plain["chips_per_scale"][0]) == (3, 1)
    assert plain["num_chips"] == sum(plain["chips_per_scale"][1:]) > 0
    assert dark["pixels_processed"] < plain["pixels_processed"] < plain["pixels_pyramid"] / 2
    assert all(r["bytes"] > 0 for r in rows.values() if r["error"] == "" or "detect" in r["error"])
    assert rows["missing.jpg"]["pixels_processed"] == rows["missing.jpg"]["bytes"] == 0


def test_chips_hold_the_objects(run: Outcome) -> None:
    chips = [c for c in table(run.root, "chips").to_pylist() if c["image_id"] == "plain_1.png"]
    assert {c["scale"] for c in chips} == {1, 2}
    assert all(0 <= c["x0"] < c["x1"] <= 640 and 0 <= c["y0"] < c["y1"] <= 480 for c in chips)
    assert all(0 < c["focus"] <= 1 and c["lane"] >= 0 for c in chips)
    x0, y0, x1, y1 = SMALL.box
    held = [c["x0"] <= x0 and c["y0"] <= y0 and x1 <= c["x1"] and y1 <= c["y1"] for c in chips]
    assert any(inside and c["scale"] == 2 for inside, c in zip(held, chips, strict=True))


def test_schemas_are_those_of_the_contract(run: Outcome) -> None:
    schemas = {"detections": DETECTIONS, "images": IMAGES, "chips": CHIPS, "rows": STORED_ROW}
    for name, schema in schemas.items():
        parts = sorted((run.root / name).iterdir())
        assert parts
        for part in parts:
            assert pq.read_schema(part).equals(schema), part


def test_run_json(run: Outcome, config: IndexConfig) -> None:
    content = json.loads((run.root / "run.json").read_text())
    keys = ["run_id", "config", "config_hash", "checkpoint_hash", "class_names", "libraries"]
    more = ["totals", "skipped", "damaged", "wall_seconds", "stages", "budget", "guarantee"]
    assert set(content) == {*keys, *more}
    assert content["budget"] is None
    assert content["config"] == config.model_dump(mode="json")
    assert content["class_names"] == list(CLASS_NAMES)
    assert content["checkpoint_hash"] == source().identity
    assert content["totals"]["images"] == 15
    assert content["totals"]["detections"] == table(run.root, "detections").num_rows
    assert content["wall_seconds"] > 0
    assert set(table(run.root, "images")["run_id"].to_pylist()) == {content["run_id"]}
    assert set(content["libraries"]) >= {"python", "ray", "torch"}


def test_folder_holds_nothing_else(run: Outcome) -> None:
    names = {path.name for path in run.root.iterdir()}
    tables = {"rows", "detections", "images", "chips"}
    assert names == {*tables, "run.json", "plan.json", "manifest.parquet"}


def test_summary_names_the_errors(run: Outcome) -> None:
    text = summary(run)
    assert "images      15 (5 errors, 0 done before)" in text
    assert "text.jpg: not an image" in text
    assert str(run.root) in text


def check_as_in_process(run: Outcome, config: IndexConfig, folder: Path) -> None:
    """The graph's detections and chips are bit for bit those of the cascade in this process."""
    rows = [cascade_row(config, folder / name) for name in PLAIN]
    stored = rows_to_table(rows, stored=True)
    wanted = by_image(run.root, "detections")
    made = detections_table(stored, CLASS_NAMES).to_pylist()
    for name in PLAIN:
        own = [r for r in made if r["image_id"] == name]
        assert sorted(own, key=str) == wanted.get(name, [])
    if (run.root / "chips").exists():
        chips = [c for c in table(run.root, "chips").to_pylist() if c["image_id"] in PLAIN]
        assert sorted(chips, key=str) == sorted(chips_table(stored).to_pylist(), key=str)
    costs = {r["image_id"]: r for r in table(run.root, "images").to_pylist()}
    for row in rows:
        assert costs[row.image_id]["pixels_per_scale"] == row.ledger.pixels
        assert costs[row.image_id]["dropped_range"] == row.ledger.dropped_range


def test_autofocus_equals_the_cascade_in_process(run: Outcome, config: IndexConfig) -> None:
    check_as_in_process(run, config, Path(config.source.uri).parent)


@pytest.mark.parametrize("mode", ["pyramid", "whole"])
def test_other_modes(without_ray: None, config: IndexConfig, tmp_path: Path, mode: str) -> None:
    folder = Path(config.source.uri).parent
    for name in PLAIN:
        save(tmp_path / "images" / name, Image.open(folder / name))
    output = {"uri": str(tmp_path / "out"), "chips": False}
    other = index_config(tmp_path / "images", tmp_path, mode=mode, output=output)
    run = index(other, source())
    assert not (run.root / "chips").exists()
    check_as_in_process(run, other, tmp_path / "images")
    check_found(boxes_of(run.root)["plain_1.png"], SCENE)
    share = {"pyramid": 1, "whole": 1 / 21}[mode]
    assert run.totals.pixels_pyramid == 3 * 320 * 240 * 21
    # Tiles of what exceeds the largest lane overlap.
    assert share <= run.totals.pixels_processed / run.totals.pixels_pyramid < share * 1.8


POOLS = [
    {"max_side": 128},
    {"scales": [1, 2], "max_side": 256, "batch_pixels": 300_000},
    {"threads": 1},
]


SPLIT = {"ray": {"rows_per_block": 3, "pools": POOLS, "task_cpus": 0.05}}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        pytest.param({"plan": "fused"}, "without_ray", id="fused"),
        pytest.param({}, "cluster", marks=pytest.mark.ray, id="staged"),
        pytest.param(SPLIT, "cluster", marks=pytest.mark.ray, id="pools"),
    ],
)
def test_other_plans_and_ray_give_the_same_rows(
    run: Outcome,
    config: IndexConfig,
    tmp_path: Path,
    changes: dict[str, Any],
    where: str,
    request: pytest.FixtureRequest,
) -> None:
    request.getfixturevalue(where)
    other = index_config(Path(config.source.uri).parent, tmp_path / "out", **changes)
    again = index(other.model_copy(update={"source": config.source}), source())
    for name in ("rows", "detections", "images", "chips"):
        assert plain_rows(again.root, name) == plain_rows(run.root, name)
    identity = [json.loads((one.root / "plan.json").read_text()) for one in (run, again)]
    assert identity[0] == identity[1]
    names = [stage["stage"] for stage in again.stages]
    single = ["Detect[s0]", "Detect[s1]", "Detect[s2]", "Stack"]
    expected = ["Cascade", "Stack"] if "plan" in changes else [] if changes else single
    bounded = [f"Detect[s{s}<={side}]" for s in (1, 2) for side in (128, 256)]
    split = ["Detect[s0]", *bounded[:2], "Detect[s1]", *bounded[2:], "Detect[s2]", "Stack"]
    assert names == (expected or split)


def plain_rows(root: Path, name: str) -> dict[str, list[Any]]:
    """A table's records by image, without clocks."""
    found = by_image(root, name, ("decode_ms", "forward_ms"))
    for records in found.values():
        for record in records:
            for clock in ("decode_ms", "forward_ms"):
                record.get("ledger", {}).pop(clock, None)
    return found


def test_stages_account_for_every_image(run: Outcome) -> None:
    stages = {stage["stage"]: stage for stage in run.stages}
    assert list(stages) == ["Detect[s0]", "Detect[s1]", "Detect[s2]", "Stack"]
    assert all(stage["images"] == 15 for stage in run.stages)
    chips = [stages[f"Detect[s{scale}]"]["chips"] for scale in range(3)]
    assert sum(chips[1:]) >= run.totals.chips > 0  # tiles of a chip count singly
    assert all(0 < stages[f"Detect[s{scale}]"]["batch_fill"] <= 1 for scale in range(3))
    assert stages["Stack"]["batch_fill"] is None
    assert all(0 < stage["busy_share"] <= 1 for stage in run.stages)
    assert json.loads((run.root / "run.json").read_text())["stages"] == run.stages
