"""A training small enough for tests: a thin detector on two drawn scenes."""

import json
from pathlib import Path
from typing import Any

import yaml

from af_pipeline.scenes.synthetic import CLASS_NAMES, render_scene
from jobs.train import main
from tests.helpers.pictures import save

INDEX = {
    "pyramid": [{"factor": 0.25, "valid_range": [40, -1]}, {"factor": 0.5}],
    "focus": {"steps": [{"min_size": 64}]},
    "mode": "pyramid",
}
TREE: dict[str, Any] = {
    "data": {"synthetic_scenes": 2, "synthetic_share": 1},
    "model": {"width": 0.25, "channels": 16, "head_depth": 0},
    "pyramid": [{"factor": 0.5, "valid_range": [40, -1]}, {"factor": 1.0}],
    "chips": {"size": 64},
    "optim": {"steps": 6, "global_batch": 2, "warmup_steps": 2, "bf16": False},
    "run": {"name": "tiny", "threads": 1, "log_every": 1, "checkpoint_every": 3},
}


def write_config(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(TREE))
    (folder / "index.yaml").write_text(yaml.safe_dump(INDEX))
    return path


def arguments(folder: Path, *sets: str) -> list[str]:
    sets = (f"run.output={folder}", *sets)
    parts = [part for one in sets for part in ("--set", one)]
    return ["--config", str(write_config(folder)), *parts]


def job(folder: Path, *sets: str) -> int:
    return main(arguments(folder, *sets))


def records(folder: Path, name: str = "tiny") -> list[dict[str, float]]:
    """Each step's record, in the order written; validations left out."""
    path = folder / name / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [record for record in found if "total" in record]


def steps(folder: Path, name: str = "tiny") -> list[int]:
    return [int(record["step"]) for record in records(folder, name)]


def losses(folder: Path, name: str = "tiny") -> list[float]:
    return [record["total"] for record in records(folder, name)]


def annotations(folder: Path, count: int = 2) -> Path:
    """Drawn scenes as a COCO json with its images."""
    images, boxes = [], []
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        scene = render_scene(number, 256, 256)
        (folder / f"images/{number}.png").write_bytes(save(scene.image, "PNG"))
        images.append({"id": number, "file_name": f"{number}.png", "width": 256, "height": 256})
        for (x0, y0, x1, y1), label in zip(scene.boxes.tolist(), scene.labels, strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": int(label) + 1}
            boxes.append({"id": len(boxes), "image_id": number, "iscrowd": 0, **box})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)]
    tree = {"images": images, "annotations": boxes, "categories": categories}
    path = folder / "val.json"
    path.write_text(json.dumps(tree))
    return path
