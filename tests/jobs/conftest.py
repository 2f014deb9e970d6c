"""A run of one image, and the ground truth of two."""

import json
from pathlib import Path

import pytest

from tests.helpers.evaluating import BOX, write_table


@pytest.fixture
def out(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    found = {"label": "car", "score": 0.9, **BOX}
    write_table(
        out / "detections",
        [{"image_id": "a.jpg", **found}, {"image_id": "a.jpg", **found, "score": 0.05}],
    )
    spent = {"status": "ok", "pixels_processed": 100, "pixels_pyramid": 400}
    write_table(out / "images", [{"image_id": "a.jpg", **spent}])
    (out / "run.json").write_text("{}")
    return out


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    path = tmp_path / "truth.json"
    objects = [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 50, 50]} for i in (1, 2)]
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
                "categories": [{"id": 1, "name": "car"}],
                "annotations": objects,
            }
        )
    )
    return path
