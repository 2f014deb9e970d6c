"""A training small enough for tests: a thin detector on two images with bright squares."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from af_pipeline.commands.train import main
from tests.helpers.pictures import save

CLASS_NAMES = ("bright", "dark")
INDEX = {
    "pyramid": [{"factor": 0.25, "valid_range": [40, -1]}, {"factor": 0.5}],
    "focus": {"steps": [{"min_size": 64}]},
    "mode": "pyramid",
}
TREE: dict[str, Any] = {
    "model": {"width": 0.25, "channels": 16, "head_depth": 0},
    "pyramid": [{"factor": 0.5, "valid_range": [40, -1]}, {"factor": 1.0}],
    "chips": {"size": 64},
    "optim": {"steps": 6, "global_batch": 2, "warmup_steps": 2, "bf16": False},
    "run": {"name": "tiny", "threads": 1, "log_every": 1, "checkpoint_every": 3},
}


def write_config(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, data = folder / "train.yaml", folder / "squares/val.json"
    if not data.exists():
        annotations(data.parent)
    path.write_text(yaml.safe_dump({"data": {"train": str(data)}, **TREE}))
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
    """Noise with squares of 24 to 60 px, of a grey for each class, as a COCO json with images."""
    images, boxes = [], []
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(100, 140, (256, 256, 3)).astype(np.uint8)
        for place in range(6):
            side, label = int(rng.integers(24, 61)), place % len(CLASS_NAMES)
            x, y = 5 + 85 * (place % 3), 20 + 120 * (place // 3)
            pixels[y : y + side, x : x + side] = (240, 20)[label]
            box = {"bbox": [x, y, side, side], "category_id": label + 1, "iscrowd": 0}
            boxes.append({"id": len(boxes), "image_id": number, **box})
        (folder / f"images/{number}.png").write_bytes(save(pixels, "PNG"))
        images.append({"id": number, "file_name": f"{number}.png", "width": 256, "height": 256})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)]
    tree = {"images": images, "annotations": boxes, "categories": categories}
    path = folder / "val.json"
    path.write_text(json.dumps(tree))
    return path
