"""Annotations read in tests, and made-up ground truth with detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from af_pipeline.data.annotations.coco import columns_of
from af_pipeline.data.annotations.dataset import AnnotatedDataset, Problems, check
from af_pipeline.data.annotations.load import load_annotations

Json = dict[str, Any]


def load(path: str | Path, images: str | None = None, **options: Any) -> AnnotatedDataset:
    """One file of annotations."""
    return load_annotations([str(path)], images, **options)


def ground_truth(document: Json) -> AnnotatedDataset:
    """The content of a COCO json, read for scoring."""
    problems = Problems("truth.json", scoring=True)
    return check(columns_of(document, problems), problems)


def made_up(seed: int, images: int = 6, classes: int = 3) -> tuple[Json, pa.Table]:
    """Random objects of all sizes, some of them crowds, and noisy, missed and false detections."""
    rng = np.random.default_rng(seed)
    annotations: list[Json] = []
    rows: list[Json] = []
    for image in range(images):
        for _ in range(rng.integers(0, 12)):
            x, y = rng.uniform(0, 500, 2)
            w, h = rng.choice([12, 50, 180]) * rng.uniform(0.6, 1.6, 2)
            label = int(rng.integers(0, classes))
            crowd = int(rng.random() < 0.1)
            annotations.append(annotation(len(annotations) + 1, image, label, [x, y, w, h], crowd))
            for _ in range(rng.integers(0, 3)):
                noise = rng.normal(0, 0.08, 4) * [w, h, w, h]
                box = np.array([x, y, x + w, y + h]) + noise
                label = label if rng.random() < 0.9 else int(rng.integers(0, classes))
                rows.append(detection(image, label, float(rng.random()), box))
    truth = {
        # Ids in another order than the names: nothing may rely on it.
        "images": [{"id": 100 - i, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": 7 * c + 1, "name": f"c{c}"} for c in range(classes)],
        "annotations": annotations,
    }
    return truth, table_of(rows)


def annotation(number: int, image: int, label: int, box: list[float], crowd: int = 0) -> Json:
    return {
        "id": number,
        "image_id": 100 - image,
        "category_id": 7 * label + 1,
        "bbox": [float(v) for v in box],
        "area": float(box[2] * box[3]),
        "iscrowd": crowd,
    }


def detection(image: int, label: int, score: float, box: Any) -> Json:
    corners = dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True))
    return {"image_id": f"{image}.jpg", "label": f"c{label}", "score": score, **corners}


def table_of(rows: list[Json]) -> pa.Table:
    names = pa.schema([("image_id", pa.string()), ("label", pa.string())])
    numbers = pa.schema([(name, pa.float64()) for name in ("score", "x0", "y0", "x1", "y1")])
    return pa.Table.from_pylist(rows, schema=pa.schema([*names, *numbers]))


def perfect(truth: Json) -> pa.Table:
    rows = []
    for a in truth["annotations"]:
        x, y, w, h = a["bbox"]
        if not a["iscrowd"]:
            image, label = 100 - a["image_id"], (a["category_id"] - 1) // 7
            rows.append(detection(image, label, 0.9, [x, y, x + w, y + h]))
    return table_of(rows)
