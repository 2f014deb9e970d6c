"""Recipes as they stand: on data with the faults of the published files, and at work."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from af_pipeline.config import load_config
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from af_pipeline.settings.train import TrainConfig
from af_pipeline.training.data import build_stream, load_training, look_at_data
from examples.aerial_scenes.scenes import write_dataset
from tests.helpers.fakes import paint, run_cascade
from tests.helpers.official import as_official

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORK_PX = {  # of 640 x 480 and 500 x 375 px, by the paper's rule
    (480, 640): (0.8, 1.6667, 2.9167),
    (375, 500): (1.024, 2.1333, 3.7333),
}


@pytest.mark.parametrize("recipe", ["coco_mobilenet", "coco_r101"])
def test_coco_recipes_train_on_the_published_file(recipe: str, tmp_path: Path) -> None:
    """As published: nothing is corrected by hand, and no setting but the paths is given."""
    path = as_official(write_dataset(tmp_path, 3, 0, [(300, 400)]), tmp_path)
    sets = [f"data.train={path}", f"data.images={tmp_path / 'images'}"]
    config = load_config(TrainConfig, CONFIGS / f"train/{recipe}.yaml", sets)
    dataset = load_training(config)
    assert [text.partition("annotation ")[2][:6] for text in dataset.dropped] == [
        "918 ha",
        "220684",
    ]
    assert dataset.images[0].crowd.sum() == 1
    assert len(dataset.images[-1].boxes) == 0
    told = look_at_data(config, dataset)
    assert "left out: " in told[0]
    assert "decoded 3 of 3 images, 0 of them left out" in told[2]
    stream = build_stream(config, dataset)
    assert stream.slots == config.optim.global_batch
    (refs, _), *_ = islice(stream.walk(stream.start()), 1)
    samples = [stream.sample(ref) for ref in refs[:4]]
    assert all(sample.image.shape == (512, 512, 3) for sample in samples)


@pytest.mark.parametrize("recipe", ["coco", "voc"])
def test_index_recipes_have_the_papers_numbers(recipe: str) -> None:
    config = load_config(IndexConfig, CONFIGS / f"index/{recipe}.yaml")
    for size, factors in NETWORK_PX.items():
        found = [scale.factor_for(*size) for scale in config.pyramid]
        assert found == pytest.approx(factors, rel=1e-3)
    assert [s.valid_range for s in config.pyramid] == [(75, -1), (32, 180), (-1, 75)]
    steps = [(s.dilation, s.threshold, s.min_size / 16, s.merge) for s in config.focus.steps]
    assert steps == [(3, 0.02, 16, "paper"), (3, 0.2, 20, "paper")]
    stack = config.stack
    assert (stack.method, stack.sigma, stack.max_detections) == ("soft", 0.55, 200)
    train = load_config(
        TrainConfig, CONFIGS / f"train/{'coco_r101' if recipe == 'coco' else recipe}.yaml"
    )
    assert config.checkpoint == f"runs/train/{train.run.name}/{train.run.name}.safetensors"


@pytest.mark.parametrize("recipe", sorted(path.stem for path in CONFIGS.glob("index/*.yaml")))
def test_index_recipes_find_small_and_large(recipe: str) -> None:
    config = load_config(IndexConfig, CONFIGS / f"index/{recipe}.yaml")
    wanted = np.array([[60, 50, 84, 76], [400, 300, 460, 350], [180, 140, 380, 290]])
    (row,) = run_cascade([paint(wanted, 480, 640)], build_plan(config))
    # Objects that two scales answer for are found twice; soft-NMS leaves the second a low score.
    found = row.detections.boxes[row.detections.scores > 0.5]
    assert len(found) == len(wanted)
    for box in wanted:
        assert np.abs(found - box).max(1).min() <= 3
    assert len(row.ledger.pixels) == len(config.pyramid)
    assert all(row.ledger.pixels)
