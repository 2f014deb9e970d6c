"""Proposals come back by image, whatever the order and the number of their files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.core.schema import DETECTIONS
from af_pipeline.sniper.proposals import CORNERS, load_proposals


def write(path: Path, ids: list[str], boxes: list[list[float]], kind: pa.DataType) -> None:
    corners = np.array(boxes, float).reshape(-1, 4)
    columns: dict[str, pa.Array] = {"image_id": pa.array(ids, pa.string())}
    columns |= {name: pa.array(corners[:, i], kind) for i, name in enumerate(CORNERS)}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_boxes_by_image_in_the_order_of_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "detections"
    write(
        folder / "0.parquet",
        ["b", "a", "b"],
        [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]],
        pa.float32(),
    )
    write(folder / "1.parquet", ["c", "a"], [[0, 0, 1, 1], [0.5, 0, 2, 2]], pa.float32())
    for uri in (str(folder), f"file://{folder}"):
        found = load_proposals(uri)
        assert {key: boxes.tolist() for key, boxes in found.items()} == {
            "a": [[5, 6, 7, 8], [0.5, 0, 2, 2]],
            "b": [[1, 2, 3, 4], [9, 10, 11, 12]],
            "c": [[0, 0, 1, 1]],
        }
        assert {boxes.dtype for boxes in found.values()} == {np.dtype(np.float32)}


def test_a_single_file_of_other_numbers(tmp_path: Path) -> None:
    write(tmp_path / "own.parquet", ["x/1.jpg"], [[1, 2, 3, 4]], pa.int64())
    found = load_proposals(str(tmp_path / "own.parquet"))
    assert found["x/1.jpg"].tolist() == [[1, 2, 3, 4]]
    assert found["x/1.jpg"].dtype == np.float32


def test_the_detections_of_an_index_run(tmp_path: Path) -> None:
    row = {field.name: 0 for field in DETECTIONS} | {"image_id": "a.jpg", "x1": 4.0, "y1": 8.0}
    row |= {field.name: "" for field in DETECTIONS if field.type == pa.string()} | {
        "image_id": "a.jpg"
    }
    pq.write_table(pa.Table.from_pylist([row], DETECTIONS), tmp_path / "part.parquet")
    assert load_proposals(str(tmp_path))["a.jpg"].tolist() == [[0, 0, 4, 8]]


def test_no_proposals(tmp_path: Path) -> None:
    write(tmp_path / "none.parquet", [], [], pa.float32())
    assert load_proposals(str(tmp_path)) == {}


@pytest.mark.parametrize("what", ["missing", "text", "columns"])
def test_what_cannot_be_read_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "some.parquet"
    if what == "text":
        path.write_text("x0,y0\n")
    if what == "columns":
        pq.write_table(pa.table({"image_id": ["a"], "x0": [1.0]}), path)
    with pytest.raises(ValueError, match=r"some\.parquet cannot be read .*jobs/mine\.py") as caught:
        load_proposals(str(path))
    assert "\n" not in str(caught.value)
