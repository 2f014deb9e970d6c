"""COCO files as they are published, with their faults."""

import json
from pathlib import Path


def as_official(source: Path, folder: Path) -> Path:
    """A copy of a COCO file with what instances_train2017.json holds besides good boxes.

    A box without height (annotation 918), one without width, a crowd with a run-length mask, an
    image without annotations, and category ids with gaps.
    """
    document = json.loads(source.read_text())
    image, last = document["images"][0], document["images"][-1]
    for entry in (*document["categories"], *document["annotations"]):
        key = "category_id" if "image_id" in entry else "id"
        entry[key] += entry[key] // 2
    notes = [one for one in document["annotations"] if one["image_id"] != last["id"]]
    common = {"image_id": image["id"], "category_id": notes[0]["category_id"]}
    mask = {"counts": [8, 12, image["width"] * image["height"] - 20], "size": [20, 20]}
    notes += [
        {**common, "id": 918, "bbox": [10.5, 20.0, 12.4, 0.0], "area": 0.0, "iscrowd": 0},
        {**common, "id": 2206849, "bbox": [10.5, 20.0, 0.0, 3.6], "area": 0.0, "iscrowd": 0},
        {**common, "id": 900100, "bbox": [1, 2, 90, 60], "iscrowd": 1, "segmentation": mask},
    ]
    path = folder / "official.json"
    path.write_text(json.dumps({**document, "annotations": notes}))
    return path
