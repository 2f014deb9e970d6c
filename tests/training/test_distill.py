"""Distillation from start to end: a function that finds patches teaches a focus network."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from af_pipeline.commands.distill import choose_settings, main
from af_pipeline.config import load_config
from af_pipeline.core.cascade import run_cascade
from af_pipeline.core.schema import ImageRow
from af_pipeline.models.focus_network import load_focus_network
from af_pipeline.models.open import open_detector
from af_pipeline.output.place import OutputError
from af_pipeline.settings.detector import FocusNetworkConfig
from af_pipeline.settings.distill import DistillRule
from af_pipeline.settings.guarantee import check_guarantee
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan
from af_pipeline.training import distill as module
from af_pipeline.training.distill import distill
from tests.helpers.bright import scene, write_scenes


def config(images: Path, function: str = "load") -> IndexConfig:
    """Patches of 14 to 24 px are found at full size only."""
    step = {"threshold": 0.2, "dilation": 3, "min_size": 32, "context": 8}
    return IndexConfig(
        source={"uri": str(images)},
        detector={"path": f"tests.helpers.bright:{function}"},
        pyramid=[{"factor": 0.25}, {"factor": 1.0}],
        focus={"steps": [step]},
        stack={"method": "hard", "min_score": 0.3},
        device="cpu",
    )


@dataclass
class Lesson:
    images: Path
    output: Path

    def rule(self, **more: object) -> DistillRule:
        given = {"output": self.output, "sample": 14, "held": 4, "steps": 80, **more}
        return DistillRule(**given)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 18, 3)


@pytest.fixture(scope="module")
def lesson(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    """One that is done."""
    from tests.helpers.in_process import replace_ray

    made = Lesson(images, tmp_path_factory.mktemp("out"))
    with pytest.MonkeyPatch.context() as patch:
        replace_ray(patch)
        small(patch)
        distill(config(images), made.rule())
    return made


def small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "BATCH", 6)
    patch.setattr(module, "SAVE_EVERY", 5)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def looked(config: IndexConfig, image: np.ndarray) -> ImageRow:
    row = ImageRow("a", "")
    run_cascade(row, image, build_plan(config), open_detector(config).predictor(1))
    return row


@pytest.mark.slow
def test_the_network_leads_the_detector_to_what_its_pyramid_finds(lesson: Lesson) -> None:
    plain = config(lesson.images)
    network = FocusNetworkConfig(path=str(lesson.output / "focus.safetensors"))
    focused = plain.model_copy(
        update={"focus": plain.focus.model_copy(update={"network": network})}
    )
    first = plain.focus.model_copy(update={"network": network.model_copy(update={"first": True})})
    skipping = plain.model_copy(update={"focus": first})
    rng = np.random.default_rng(99)
    found = {"pyramid": 0, "weak": 0, "network": 0, "first": 0}
    pixels = dict.fromkeys(found, 0)
    for _ in range(8):
        image = scene(rng)
        for name, one in (
            ("pyramid", plain.model_copy(update={"mode": "pyramid"})),
            ("weak", plain),
            ("network", focused),
            ("first", skipping),
        ):
            row = looked(one, image)
            found[name] += len(row.detections)
            pixels[name] += sum(row.ledger.pixels)
    assert found["pyramid"] > 12
    assert found["weak"] == 0  # the coarse scale has no idea of them
    assert found["network"] >= 0.9 * found["pyramid"]
    assert pixels["network"] < 0.5 * pixels["pyramid"]
    assert found["first"] == found["network"]
    assert pixels["first"] < pixels["network"]  # nothing to be found coarsely


@pytest.mark.slow
def test_what_was_stopped_ends_as_if_it_had_not_been(
    images: Path, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    once, twice = (Lesson(images, tmp_path / name) for name in ("once", "twice"))
    distill(config(images), once.rule(steps=8))
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_focus_network", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(config(images), twice.rule(steps=8))
    assert (twice.output / "steps.pt").exists()  # of step 5
    distill(config(images), twice.rule(steps=8))
    assert not (twice.output / "steps.pt").exists()
    one, other = (load_focus_network(each.output / "focus.safetensors") for each in (once, twice))
    assert one.info == other.info
    for own, same in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, same)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(lesson: Lesson, images: Path, without_ray: None) -> None:
    path = lesson.output / "focus.safetensors"
    before = path.stat().st_mtime_ns
    done = distill(config(images), lesson.rule())
    assert done.network == path
    assert path.stat().st_mtime_ns == before
    learned = {one.image_id for one in done.held}
    assert len(learned) == 4


@pytest.mark.slow
def test_the_config_to_use_has_the_network_and_the_source(
    lesson: Lesson, images: Path, without_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    done = distill(config(images), lesson.rule())
    code = choose_settings(config(images), lesson.rule(max_lost=0.2), done.network, done.held)
    said = capsys.readouterr().out
    assert code == 0, said
    assert f"use it      --config {lesson.output / 'index.yaml'}" in said
    chosen = load_config(IndexConfig, lesson.output / "index.yaml")
    assert chosen.source.uri == str(images)
    assert chosen.focus.network == FocusNetworkConfig(path=str(done.network), first=True)
    assert chosen.detector == config(images).detector
    row = looked(chosen, scene(np.random.default_rng(99)))
    assert len(row.detections) >= 2


@pytest.mark.slow
def test_tiny_numbers_are_numbers_after_it(lesson: Lesson) -> None:
    assert float(torch.tensor([1e-40]) / 2) > 0  # p-values of a guarantee in the same process


@pytest.mark.slow
def test_thresholds_of_a_network_can_be_certified(
    lesson: Lesson, images: Path, tmp_path: Path, without_ray: None
) -> None:
    done = distill(config(images), lesson.rule())
    asked = lesson.rule(output=tmp_path, held=2, calibration=2, alpha=0.7, delta=0.4, max_lost=0.5)
    assert choose_settings(config(images), asked, done.network, done.held) == 0
    chosen = load_config(IndexConfig, tmp_path / "index.yaml")
    assert chosen.guarantee is not None
    assert (chosen.mode, chosen.guarantee.images) == ("autofocus", 2)
    check_guarantee(chosen, open_detector(chosen).identity)
    other = chosen.model_copy(update={"detector_nms": 0.5})
    with pytest.raises(ValueError, match="certified for other settings"):
        check_guarantee(other, open_detector(other).identity)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sample", "1"], "--sample: Input should be greater than or equal to 2"),
        (["--steps", "many"], "--steps: Input should be a valid integer"),
        (["--set", "detector.pathh=x"], "did you mean 'path'?"),
        (["--set", "detector.path=nothing.onnx"], "detector.path=nothing.onnx cannot be read"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    write_scenes(tmp_path / "images", 1, 1)
    given = ["--config", "configs/index/coco_yolox.yaml", "--output", str(tmp_path / "out")]
    assert main([*given, "--set", f"source.uri={tmp_path / 'images'}", *options]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


@pytest.mark.slow
def test_another_detector_or_sample_does_not_go_on_in_the_folder(
    lesson: Lesson, images: Path, without_ray: None
) -> None:
    for changed, more in ((config(images, "blind"), {}), (config(images), {"seed": 7})):
        with pytest.raises(OutputError, match="holds a distillation with other settings"):
            distill(changed, lesson.rule(**more))


def test_what_cannot_be_learned_is_told(images: Path, tmp_path: Path, without_ray: None) -> None:
    rule = DistillRule(output=tmp_path / "out", sample=2, held=1, steps=1)
    with pytest.raises(ValueError, match="confident of nothing in these images"):
        distill(config(images, "blind"), rule)
    one = config(images).model_copy(update={"pyramid": config(images).pyramid[:1]})
    with pytest.raises(ValueError, match="two scales or more"):
        distill(one, rule)
    few = config(images).model_copy(
        update={"source": config(images).source.model_copy(update={"uri": str(images / "00.png")})}
    )
    with pytest.raises(ValueError, match="1 images are too few"):
        distill(few, rule)
