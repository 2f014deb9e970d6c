"""Validation while training: turned images are scored upright, broken ones left out or named."""

from pathlib import Path

import pytest
import torch

from af_pipeline.config import config_from
from af_pipeline.models.checkpoint import build_detector
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.train import DataConfig, ModelConfig
from af_pipeline.sniper.images import BrokenImageError
from af_pipeline.training.validation import find_objects, score
from tests.helpers.annotated import annotated, data_of, picture


def test_turned_and_broken_images(tmp_path: Path) -> None:
    images = [annotated(picture(tmp_path)), annotated(picture(tmp_path, 6, name="turned"))]
    images.append(annotated(tmp_path / "gone.jpg"))
    model = ModelConfig(width=0.25, channels=16, head_depth=0)
    detector = build_detector(model.model_dump(), 1).eval()
    index = config_from(IndexConfig, {"pyramid": [{"factor": 1}], "mode": "whole"}, (), "test")
    device, drop = torch.device("cpu"), DataConfig(on_broken="drop")
    found = find_objects(detector, images, index, device, drop)
    assert [image.image_id for _, image in found] == ["a.jpg", "turned.jpg"]
    for row, image in found:
        assert (row.width, row.height) == (image.width, image.height)
    assert found[1][1].boxes.tolist() == [[64 - 52, 16, 64 - 40, 40]]
    scores = score(found, data_of(images, "a"))
    assert scores.keys() == {"val_AP", "val_AP50", "val_pixels_share"}
    with pytest.raises(BrokenImageError, match=r"gone\.jpg"):
        find_objects(detector, images, index, device, DataConfig())
    with pytest.raises(BrokenImageError, match=r"no image of data\.val can be used"):
        score([], data_of([], "a"))
