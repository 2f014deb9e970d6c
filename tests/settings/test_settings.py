"""Settings of the training: what cannot work is refused before anything starts."""

from pathlib import Path

import pytest

from af_pipeline.config import ConfigError, dump_config, load_config
from af_pipeline.settings.train import TrainConfig, TrainPart

TRAIN = "pyramid: [{factor: 0.5, valid_range: [72, -1]}, {factor: 1, valid_range: [0, 90]}]\n"


def load(folder: Path, *overrides: str) -> TrainConfig:
    path = folder / "train.yaml"
    path.write_text(TRAIN)
    return load_config(TrainConfig, path, overrides)


def test_what_fits_is_taken(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "chips={size: 64, jitter: [1, 1], stride: [0.11, 1], min_proposals: [0, 0]}",
        "classes=[car]",
        "optim={global_batch: 6, schedule: step, step_at: [0.5, 0.76]}",
        "run.workers=3",
        "focus_labels={ignore_below: 0, focus_below: 40, ignore_until: 40}",
        "validation={every: 100, index: configs/index/aerial.yaml}",
        "data.val=val.json",
        "model={kind: faster_rcnn, backbone: resnet50, neck: dilated, norm: gn}",
    )
    assert config.classes == ("car",)
    assert config.pyramid[1].valid_range == (0, 90)
    assert config.optim.step_at == (0.5, 0.76)
    assert TrainConfig.model_validate(dump_config(config)) == config


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("train.json", ("train.json",)),
        ("[]", ()),
        ("[a.json, b/ImageSets/Main/trainval.txt]", ("a.json", "b/ImageSets/Main/trainval.txt")),
    ],
)
def test_data_are_one_path_or_several(tmp_path: Path, text: str, paths: tuple[str, ...]) -> None:
    judged = ("validation.every=5", "validation.index=a.yaml") if paths else ()
    data = load(tmp_path, f"data.train={text}", f"data.val={text}", *judged).data
    assert data.train == tuple(map(TrainPart, paths))
    assert data.val == paths
    assert load(tmp_path).data.train == ()


@pytest.mark.parametrize("steps", ["[]", "[0.76]", "[0.1, 0.2, 0.9]"])
def test_steps_of_the_learning_rate_rise_between_0_and_1(tmp_path: Path, steps: str) -> None:
    assert list(load(tmp_path, f"optim.step_at={steps}").optim.step_at) == sorted(
        load(tmp_path, f"optim.step_at={steps}").optim.step_at
    )


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("pyramid=[]", "pyramid needs at least one scale"),
        ("pyramid.0.factor=2", "pyramid goes coarse to fine: factor must rise"),
        ("chips.jitter=[0, 1]", "chips: jitter needs 0 < low <= high; found 0 to 1"),
        ("chips.jitter=[1.3, 0.7]", "chips: jitter needs 0 < low <= high; found 1.3 to 0.7"),
        ("chips.jitter=[0.5, .inf]", "chips.jitter.1: Input should be a finite number"),
        ("chips.stride=[0, 0.1]", "chips: stride needs 0 < low <= high <= 1; found 0 to 0.1"),
        ("chips.stride=[0.2, 0.1]", "stride needs 0 < low <= high <= 1; found 0.2 to 0.1"),
        ("chips.stride=[56, 59]", "stride needs 0 < low <= high <= 1; found 56 to 59"),
        ("chips.stride=0.1", "chips.stride: Input should be a valid tuple"),
        ("chips.min_proposals=[25, -1]", "chips: min_proposals must be 0 or more"),
        ("chips.negatives=-1", "chips.negatives: Input should be greater than or equal to 0"),
        ("chips.bounds=upper", "chips.bounds: Input should be 'both' or 'official'"),
        ("chips.flips=vertical", "chips.flips: Input should be 'none', 'horizontal' or 'all'"),
        ("chips.size=32", "chips.size: Input should be greater than or equal to 64"),
        ("chips.size=100", "chips.size: Input should be a multiple of 32"),
        (
            "chips.negative_share=0.6",
            "unknown key 'chips.negative_share'; did you mean 'negatives'",
        ),
        ("data.class_power=2", "data.class_power: Input should be less than or equal to 1"),
        ("data.train=3", "data.train: Input should be a valid tuple"),
        ("data.train=[{uri: a, part: 1}]", "unknown key 'data.train.0.part'; did you mean 'share'"),
        ("data.train=[{uri: a, share: 0}]", "data.train.0.share: Input should be greater than 0"),
        ("data.train=[{uri: a, share: 1}, b]", "data: train: give every part a share, or none"),
        ("data.synthetic_scenes=3", "unknown key 'data.synthetic_scenes'"),
        ("run.seed=-1", "run.seed: Input should be greater than or equal to 0"),
        ("classes=[]", "classes must name at least one class"),
        ("classes=[car, '']", "and none by ''"),
        ("classes=[car, bus, car]", "classes must differ; given twice: car"),
        ("focus_labels.ignore_below=64", "ignore_below < focus_below <= ignore_until must hold"),
        ("focus_labels.ignore_until=60", "found 5, 64, 60"),
        ("run.workers=3", "global_batch must be a multiple of run.workers; found 8 chips for 3"),
        ("optim.lr=.inf", "optim.lr: Input should be a finite number"),
        ("optim.lr=.nan", "optim.lr: Input should be"),
        ("optim.step_at=[0.9, 0.5]", "optim: step_at takes rising shares between 0 and 1; found"),
        ("optim.step_at=[0.5, 0.5]", "step_at takes rising shares between 0 and 1"),
        ("optim.step_at=[4000]", "step_at takes rising shares between 0 and 1; found (4000.0,)"),
        ("optim.step_factor=1", "optim.step_factor: Input should be less than 1"),
        ("validation.every=100", "validation.every needs data.val and validation.index"),
        (
            "validation={every: 100, index: configs/index/aerial.yaml}",
            "validation.every needs data.val and validation.index",
        ),
        ("classes.0=car", "the file has no list 'classes'; give the whole list"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, override)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("{neck: dilated}", "kind=dense takes neck=fpn; neck=dilated needs kind=faster_rcnn"),
        ("{backbone: resnet50, width: 0.5}", "width multiplies mobilenet_v2 only, not resnet50"),
        ("{norm: gn, width: 0.2}", "norm=gn needs width of 0.25 or more"),
        ("{anchor_sizes: []}", "anchor_sizes must be positive and rise; found ()"),
        ("{anchor_sizes: [64, 32]}", "anchor_sizes must be positive and rise; found (64.0, 32.0)"),
        ("{anchor_ratios: [0, 1]}", "anchor_ratios must be positive and rise"),
        ("{anchor_ratios: [1, 1]}", "anchor_ratios must be positive and rise"),
        ("{channels: 20}", "model.channels: Input should be a multiple of 8"),
        ("{kind: yolo}", "model.kind: Input should be 'dense' or 'faster_rcnn'"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(tmp_path: Path, model: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"model={model}")
    assert part in str(caught.value)
