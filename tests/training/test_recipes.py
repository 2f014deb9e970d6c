"""Twenty steps of every recipe in configs/train on real data, with small chips and batches.

What a recipe says of its data stands: those for COCO run on a file with the official one's faults.
"""

import json
import math
from pathlib import Path

import pytest

from af_pipeline.commands.train import main
from af_pipeline.models.checkpoint import load_detector
from tests.helpers.official import as_official
from tests.helpers.realdata import real_data

pytestmark = [
    pytest.mark.ray,
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("cluster"),
]

RECIPES = Path(__file__).parents[2] / "configs/train"
DATA = {
    "aerial_tiny": "aerial-cars/train.json",
    "bccd": "bccd/ImageSets/Main/train.txt",
    "own": "bccd/ImageSets/Main/test.txt",
    "coco_mobilenet": "coco128/val.json",
    "coco_r101": "coco128/val.json",
    "voc": "bccd/ImageSets/Main/train.txt",
}
# What fits two CPU cores; the rest is as the recipe says.
SMALL = (
    "chips.size=128",
    "optim.steps=20",
    "optim.global_batch=2",
    "optim.warmup_steps=10",
    "run.workers=1",
    "run.use_gpu=false",
    "run.threads=2",
)


def test_every_recipe_is_tried() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == DATA.keys()


@pytest.mark.parametrize("recipe", DATA)
def test_twenty_steps(recipe: str, tmp_path: Path) -> None:
    folder, _, file = DATA[recipe].partition("/")
    train = real_data(folder) / file
    images = "null"
    if folder == "coco128":
        images, train = str(train.parent / "images"), as_official(train, tmp_path)
    sets = [
        *SMALL,
        f"data.train={train}",
        f"data.images={images}",
        f"run.output={tmp_path}",
        "run.name=short",
    ]
    # A peak for 128 chips a step is too high for 2 (linear scaling rule, Goyal et al. 2017).
    if recipe in ("coco_r101", "voc"):
        sets.append("optim.lr=0.001")
    arguments = [part for one in sets for part in ("--set", one)]
    assert main(["--config", str(RECIPES / f"{recipe}.yaml"), *arguments]) == 0
    lines = (tmp_path / "short/metrics.jsonl").read_text().splitlines()
    totals = [json.loads(line)["total"] for line in lines]
    assert len(totals) == 20
    assert all(math.isfinite(total) for total in totals)
    detector, info = load_detector(tmp_path / "short/short.safetensors")
    assert detector.num_classes == len(info.class_names)
    assert info.training["step"] == 20
