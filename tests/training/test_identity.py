"""A run folder belongs to one training: other data or settings are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from af_pipeline.config import config_from
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.output.folder import OutputFolder
from af_pipeline.settings.train import TrainConfig
from af_pipeline.training.identity import identity


def config(*sets: str) -> TrainConfig:
    return config_from(TrainConfig, {"pyramid": [{"factor": 1}]}, sets, "test")


def data(left: float = 1.0) -> AnnotatedDataset:
    boxes = np.array([[left, 1, 9, 9]], np.float32)
    image = AnnotatedImage("a", "a.png", 10, 10, boxes, np.zeros(1, np.int32), np.zeros(1, bool))
    return AnnotatedDataset.of((image,), ("car",), (1,))


def claim(folder: Path, *sets: str, dataset: AnnotatedDataset | None = None) -> None:
    place = OutputFolder.at(str(folder), work="training", setting="run.name")
    place.claim(identity(config(*sets), ("car",), dataset or data()))


@pytest.mark.parametrize(
    "change",
    [
        "optim.steps=9",
        "run.workers=2",
        "run.output=elsewhere",
        "mining.steps=5",
        "data.train=b.json",
        "data.check_images=0",
        "data.on_broken=drop",
    ],
)
def test_what_may_change_when_a_run_goes_on(tmp_path: Path, change: str) -> None:
    claim(tmp_path / "run")
    claim(tmp_path / "run", change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optim.lr=0.5", "config.optim.lr: 0.002 there, 0.5 now"),
        ("run.seed=3", "seed: 0 there, 3 now"),
        ("data.proposals=p", 'config.data.proposals: null there, "p" now'),
        ("chips.size=64", "config.chips.size: 512 there, 64 now"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: str, told: str) -> None:
    claim(tmp_path / "run")
    with pytest.raises(ValueError, match="training with other settings") as caught:
        claim(tmp_path / "run", change)
    assert told in str(caught.value)


def test_other_data_are_refused(tmp_path: Path) -> None:
    claim(tmp_path / "run")
    with pytest.raises(ValueError, match=r"data: .* there, .* now"):
        claim(tmp_path / "run", dataset=data(left=2.0))
    renamed = data()
    renamed = renamed.with_images([replace(renamed.images[0], image_id="b")])
    with pytest.raises(ValueError, match=r"data: .* there, .* now"):
        claim(tmp_path / "run", dataset=renamed)


@pytest.mark.parametrize("content", [b"", b'{"config": ', b"[]", b"\xff\xfe\x00\x01"])
def test_a_damaged_plan_is_named_with_the_way_on(tmp_path: Path, content: bytes) -> None:
    claim(tmp_path / "run")
    (tmp_path / "run/plan.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run/plan\.json .*choose another run\.name"):
        claim(tmp_path / "run")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match=r"holds no training: choose an empty run\.name"):
        claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
