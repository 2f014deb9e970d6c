"""Checkpoints: what was saved is what is loaded; what is unfit says why."""

import json
import math
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from af_pipeline.models.checkpoint import build_detector, load_detector, save_checkpoint
from af_pipeline.models.dense import DenseDetector
from af_pipeline.models.detector import Selection
from af_pipeline.models.info import (
    CheckpointError,
    CheckpointInfo,
    checkpoint_hash,
    info_path,
    load_info,
)
from tests.helpers.chips import chips, sizes

MODEL = {"backbone": "mobilenet_v2", "width": 0.25, "channels": 16, "head_depth": 1}
NAMES = ("car", "truck")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("template") / "deep" / "er" / "model.v2.safetensors"
    state = build_detector(MODEL, len(NAMES)).state_dict()
    save_checkpoint(path, state, CheckpointInfo(MODEL | {"extra": 1}, NAMES, {"step": 7}))
    return path


@pytest.fixture
def saved(template: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    shutil.copytree(template.parent, tmp_path / "run")
    return tmp_path / "run" / template.name


def change(path: Path, edit: Callable[[dict], object]) -> None:
    info = json.loads(info_path(path).read_text())
    edit(info)
    info_path(path).write_text(json.dumps(info))


@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "gn"])
@pytest.mark.parametrize("kind", ["dense fpn", "faster_rcnn fpn", "faster_rcnn dilated"])
def test_load_gives_what_was_saved(kind: str, norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODEL | {"anchor_sizes": [16, 32, 64], "norm": norm}
    model |= dict(zip(("kind", "neck"), kind.split(), strict=True))
    original = build_detector(model, len(NAMES)).eval()
    original.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, original.state_dict(), CheckpointInfo(model, NAMES, {"step": 7}))
    loaded, info = load_detector(path)
    assert type(loaded) is type(original)
    assert not loaded.training
    assert info == CheckpointInfo(model, NAMES, {"step": 7})
    assert loaded.num_classes == 2
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    batch, whole = chips(1, 64, 96), sizes((64, 96))
    ((a,), _), ((b,), _) = (d(batch, whole, Selection(0.0)) for d in (original, loaded))
    assert len(a.scores)
    assert torch.equal(a.boxes, b.boxes)
    assert torch.equal(a.scores, b.scores)


def test_saving_leaves_two_files(saved: Path) -> None:
    assert sorted(p.name for p in saved.parent.iterdir()) == [
        "model.v2.json",
        "model.v2.safetensors",
    ]
    save_checkpoint(saved, load_file(saved), load_info(saved))
    assert len(list(saved.parent.iterdir())) == 2


def test_the_hash_tells_weights_and_json_apart(saved: Path) -> None:
    first = checkpoint_hash(saved)
    assert len(first) == 16
    assert checkpoint_hash(saved) == first
    change(saved, lambda info: info.update(class_names=["bus", "truck"]))
    assert checkpoint_hash(saved) != first


def test_missing_files(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors does not exist.*train"):
        load_detector(saved.with_name("nowhere.safetensors"))
    info_path(saved).unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.v2\.json beside it"):
        load_detector(saved)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda info: info.update(schema_version=99), "schema version 99, this code reads 1"),
        (lambda info: info.pop("schema_version"), "schema version None"),
        (lambda info: info.pop("class_names"), "lacks a list class_names"),
        (lambda info: info["model"].pop("width"), r"lacks model\.width"),
        (lambda info: info.update(model=None), "lacks an object model"),
        (lambda info: info.update(class_names="car"), "lacks a list class_names"),
        (lambda info: info["class_names"].append("bus"), "does not fit its json's model"),
        (lambda info: info["model"].update(width=0.5), "does not fit its json's model"),
        (lambda info: info["model"].update(backbone="vgg"), "unfit model: backbone: Input should"),
        (lambda info: info["model"].update(width="wide"), "has an unfit model"),
        (lambda info: info["model"].update(kind="yolo"), "unfit model: kind: Input should be"),
        (lambda info: info["model"].update(norm="ln"), "unfit model: norm: Input should be"),
        (lambda info: info["model"].update(kind="faster_rcnn"), "does not fit its json's model"),
        (lambda info: info["model"].update(channels=-8), "unfit model: channels: Input should be"),
        (lambda info: info["model"].update(channels=4096, head_depth=64), "does not fit its json"),
        (lambda info: info["model"].update(width=1e9), "unfit model: width: Input should be less"),
        (lambda info: info["model"].update(width=float("nan")), "unfit model: width: Input should"),
        (lambda info: info["model"].update(head_depth=10**9), "unfit model: head_depth: Input"),
        (lambda info: info["model"].update(neck="dilated"), "unfit model: config: kind=dense"),
        (lambda info: info.update(training=[]), "lacks an object training"),
        (lambda info: info.update(class_names=[]), "has no class_names"),
        (lambda info: info.update(class_names=["a", "a"]), "no distinct texts: 'a'"),
        (lambda info: info.update(class_names=["a", 7]), "no distinct texts: 7"),
        (lambda info: info.update(class_names=["a", ["b"]]), r"no distinct texts: \['b'\]"),
        (lambda info: info.update(class_names=["a", ""]), "no distinct texts: ''"),
        (lambda info: info.update(class_names=["a", "\ud800"]), r"not valid Unicode: '.ud800'"),
        (lambda info: info.update(class_names=[str(n) for n in range(10**5)]), "does not fit its"),
        (lambda info: info.update(schema_version="\n" * 999), "schema version"),
    ],
)
def test_an_unfit_json(saved: Path, edit: Callable[[dict], object], part: str) -> None:
    change(saved, edit)
    with pytest.raises(CheckpointError, match=part) as caught:
        load_detector(saved)
    assert "model.v2" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("names", [["<script>", "\u202eevil"], ["a\nb", "\U0001f697" * 9999]])
def test_odd_class_names_are_names(saved: Path, names: list[str]) -> None:
    change(saved, lambda info: info.update(class_names=names))
    assert load_detector(saved)[1].class_names == tuple(names)


@pytest.mark.parametrize("text", ["{", "[]", "null", "\xff", "", "[" * 99_999, "9" * 5000])
def test_a_json_that_is_none(saved: Path, text: str) -> None:
    info_path(saved).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"model\.v2\.json"):
        load_detector(saved)


def test_a_json_without_end_or_a_folder_in_its_place(saved: Path) -> None:
    path = info_path(saved)
    with path.open("wb") as file:
        file.truncate(2 * 10**9)  # sparse
    with pytest.raises(CheckpointError, match=r"json holds no object of at most"):
        load_detector(saved)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*json: Is a directory"):
        load_detector(saved)


@pytest.mark.parametrize("size", [0, 4, 1000, -1000])
def test_truncated_weights(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.v2\.safetensors is not a safetensors file"):
        load_detector(saved)


FIRST, COUNTER = "backbone.blocks.0.0.weight", "backbone.blocks.0.1.num_batches_tracked"


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda state: state.clear(), "does not fit its json's model in ... tensors"),
        (lambda state: state.pop(FIRST), f"in 1 tensors, first {FIRST} .*not there"),
        (lambda state: state.pop(COUNTER), f"in 1 tensors, first {COUNTER} .*not there"),
        (lambda state: state.update(more=torch.zeros(3)), "first more .*the model has none"),
        (lambda state: state.update({FIRST: state[FIRST].half()}), f"first {FIRST} .*F16"),
        (lambda state: state.update({FIRST: state[FIRST].int()}), f"first {FIRST} .*I32"),
        (lambda state: state.update({FIRST: state[FIRST][:1]}), f"first {FIRST} "),
        (lambda state: state.update({FIRST: state[FIRST] * math.nan}), f"not finite in {FIRST}"),
        (lambda state: state[FIRST].view(-1)[:1].fill_(math.inf), f"not finite in {FIRST}"),
    ],
)
def test_unfit_tensors(saved: Path, edit: Callable[[dict], object], part: str) -> None:
    state = load_file(saved)
    edit(state)
    save_file(state, saved)
    with pytest.raises(CheckpointError, match=part) as caught:
        load_detector(saved)
    assert "model.v2.safetensors" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_mutants_of_a_checkpoint_load_or_are_refused_in_one_line(saved: Path, count: int) -> None:
    """Bits of the json, of the header and of the numbers are flipped; the number says which."""
    whole = {path: path.read_bytes() for path in (saved, info_path(saved))}
    header = 8 + int.from_bytes(whole[saved][:8], "little")
    for number in range(count):
        rng = random.Random(number)
        path = rng.choice(list(whole))
        data = bytearray(whole[path])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(len(data), rng.choice((8, header, 10**9))))] ^= (
                1 << rng.randrange(8)
            )
        path.write_bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
        told = ""
        try:
            load_detector(saved)
        except CheckpointError as error:
            told = str(error)
        assert len(told.splitlines()) <= 1, number
        path.write_bytes(whole[path])


def test_a_large_model_takes_no_memory_before_it_fits(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4096 channels 64 deep are 77 GB of weights."""
    change(saved, lambda info: info["model"].update(channels=4096, head_depth=64))
    monkeypatch.setattr("af_pipeline.models.checkpoint.load_file", pytest.fail)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="does not fit"):
        load_detector(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_jsons_from_before_there_were_kinds(saved: Path) -> None:
    """They lack the newer keys and have one more; the detector is the dense one."""
    change(saved, lambda info: info["model"].update(backbone_weights=None))
    detector, info = load_detector(saved)
    assert isinstance(detector, DenseDetector)
    assert set(info.model) == {*MODEL, "extra", "backbone_weights"}


def test_the_committed_detector_loads() -> None:
    path = Path(__file__).parents[2] / "checkpoints" / "aerial_tiny.safetensors"
    detector, info = load_detector(path)
    assert isinstance(detector, DenseDetector)
    assert detector.num_classes == len(info.class_names) == 5
    assert detector.loss_names == ("class", "box", "focus")
    for name, value in load_file(path).items():
        assert torch.equal(detector.state_dict()[name], value), name
