"""Settings of the training: what cannot work is refused before anything starts."""

from pathlib import Path

import pytest

from af_pipeline.config import ConfigError, load_config
from af_pipeline.settings import TrainConfig

TRAIN = "pyramid: [{factor: 0.5, valid_range: [72, -1]}, {factor: 1, valid_range: [0, 90]}]\n"


def load(folder: Path, *overrides: str) -> TrainConfig:
    path = folder / "train.yaml"
    path.write_text(TRAIN)
    return load_config(TrainConfig, path, overrides)


def test_what_fits_is_taken(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "chips.size=64",
        "chips.jitter=[1, 1]",
        "classes=[car]",
        "optim.global_batch=6",
        "run.workers=3",
        "focus_labels={ignore_below: 0, focus_below: 40, ignore_until: 40}",
    )
    assert config.classes == ("car",)
    assert config.pyramid[1].valid_range == (0, 90)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("pyramid=[]", "pyramid needs at least one scale"),
        ("pyramid.0.factor=2", "pyramid goes coarse to fine: factor must rise"),
        ("chips.jitter=[0, 1]", "chips: jitter needs 0 < low <= high; found 0 to 1"),
        ("chips.jitter=[1.3, 0.7]", "chips: jitter needs 0 < low <= high; found 1.3 to 0.7"),
        ("chips.jitter=[0.5, .inf]", "chips.jitter.1: Input should be a finite number"),
        ("chips.size=32", "chips.size: Input should be greater than or equal to 64"),
        ("chips.size=100", "chips.size: Input should be a multiple of 32"),
        ("chips={negative_share: 0.6, focus_share: 0.6}", "together must be at most 1"),
        ("run.seed=-1", "run.seed: Input should be greater than or equal to 0"),
        ("classes=[]", "classes must name at least one class"),
        ("classes=[car, '']", "and none by ''"),
        ("classes=[car, bus, car]", "classes must differ; given twice: car"),
        ("focus_labels.ignore_below=64", "ignore_below < focus_below <= ignore_until must hold"),
        ("focus_labels.ignore_until=60", "found 5, 64, 60"),
        ("run.workers=3", "global_batch must be a multiple of run.workers; found 8 chips for 3"),
        ("optim.lr=.inf", "optim.lr: Input should be a finite number"),
        ("optim.lr=.nan", "optim.lr: Input should be"),
        ("classes.0=car", "the file has no list 'classes'; give the whole list"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, override)
    assert part in str(caught.value)
