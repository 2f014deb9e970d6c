"""The focus network: its maps, its file, and a detector that looks only where it sees something."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from af_pipeline.core.cascade import Prediction, run_cascade
from af_pipeline.core.focus import STRIDE
from af_pipeline.core.lanes import Lane
from af_pipeline.core.schema import ImageRow
from af_pipeline.models.focus_network import (
    FOCUS,
    PRESENT,
    FocusedPredictor,
    FocusInfo,
    FocusNetwork,
    load_focus_network,
    save_focus_network,
)
from af_pipeline.models.info import CheckpointError
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.modes import build_plan

LANE = Lane(256, 256)


class Counting:
    """Finds one box in every crop that it is given, and counts them."""

    class_names = ("thing",)

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, crops, lane):
        self.seen += [crop.shape for crop in crops]
        box = np.array([[1, 2, 20, 30]], np.float32)
        one = Prediction(box, np.ones(1, np.float32), np.zeros(1, np.int32), np.ones((1, 1)), 7)
        return [one] * len(crops)


class Bright(FocusNetwork):
    """Sees what is white: presence where a cell is white, focus where half of it is."""

    def forward(self, batch):
        white = torch.nn.functional.avg_pool2d((batch.float() > 200).float().mean(1), STRIDE)
        return torch.stack([white - 0.5, white - 0.01], 1) * 1000


def bright() -> Bright:
    return Bright(FocusInfo(0.5, "abc", {}), "net")


def image(*cells: tuple[int, int]) -> np.ndarray:
    made = np.zeros((96, 128, 3), np.uint8)
    for row, column in cells:
        made[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 255
    return made


def test_maps_are_the_networks_and_detections_the_detectors():
    counting = Counting()
    predict = FocusedPredictor(counting, bright(), torch.device("cpu"))
    assert predict.class_names == ("thing",)
    one, other = predict([image((2, 3)), image()], LANE)
    assert np.argwhere(one.focus > 0.5).tolist() == [[2, 3]]
    assert not (other.focus > 0.5).any()
    assert one.padded == other.padded == 7
    assert len(other.boxes) == 1
    assert len(counting.seen) == 2


def test_first_leaves_out_what_the_network_sees_nothing_in():
    counting = Counting()
    predict = FocusedPredictor(counting, bright(), torch.device("cpu"), first=True)
    empty, full = predict([image(), image((5, 7))], LANE)
    assert counting.seen == [(96, 128, 3)]
    assert not empty.looked
    assert not len(empty.boxes)
    assert empty.focus.shape[0] >= 6
    assert full.looked
    assert len(full.boxes) == 1


def test_the_same_that_always_looks():
    counting = Counting()
    predict = FocusedPredictor(counting, bright(), torch.device("cpu"), first=True)
    (one,) = predict.always()([image()], LANE)
    assert one.looked
    assert predict.first
    assert predict.predict is counting


def test_padding_is_not_something_to_be_found():
    """Cells beyond the crop do not make the detector look, whatever the network says of them."""
    network = Bright(replace(bright().info, present=0.5))
    predict = FocusedPredictor(Counting(), network, torch.device("cpu"), first=True)
    small, large = image()[:48, :48], image((5, 7))
    answers = predict([small, large], LANE)
    assert [one.looked for one in answers] == [False, True]


def test_what_is_not_looked_at_costs_nothing():
    """Also in the account of the whole cascade."""
    config = IndexConfig(
        pyramid=[{"factor": 0.5}, {"factor": 1.0}],
        focus={"steps": [{"threshold": 0.5, "dilation": 1, "min_size": 32}]},
    )
    plan = build_plan(config)
    rows = [ImageRow("a", ""), ImageRow("b", "")]
    whole = np.zeros((512, 512, 3), np.uint8)
    busy = whole.copy()
    busy[256:320, 256:320] = 255
    for row, pixels in zip(rows, (whole, busy), strict=True):
        predict = FocusedPredictor(Counting(), bright(), torch.device("cpu"), first=True)
        run_cascade(row, pixels, plan, predict)
    assert rows[0].ledger.pixels == [0, 0]
    assert rows[0].ledger.chips == [1, 0]
    assert rows[1].ledger.pixels[0] == 256 * 256
    assert 0 < rows[1].ledger.pixels[1] <= 96 * 96


def test_save_and_load_give_the_same_maps(tmp_path):
    torch.manual_seed(1)
    network = FocusNetwork(FocusInfo(0.25, "detector", {"steps": 3})).eval()
    path = tmp_path / "focus.safetensors"
    save_focus_network(network, path)
    loaded = load_focus_network(path)
    assert loaded.info == network.info
    assert len(loaded.identity) == 16
    batch = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded(batch), network(batch))
        assert loaded(batch).shape == (2, 2, 4, 6)
    assert (FOCUS, PRESENT) == (0, 1)
    assert sum(p.numel() for p in network.parameters()) < 350_000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: path.with_suffix(".json").unlink(), "cannot be read: No such file"),
        (lambda path: path.with_suffix(".json").write_text("{"), "is not valid JSON"),
        (lambda path: path.with_suffix(".json").write_text('{"model": {}}'), "is no focus network"),
        (lambda path: path.write_bytes(b"x"), "is no focus network of this release"),
        (
            lambda path: path.with_suffix(".json").write_text(
                json.dumps({"kind": "focus_network", "schema_version": 9, "present": 0,
                            "detector": "", "training": {}})
            ),
            "schema version is 9",
        ),
    ],
)  # fmt: skip
def test_another_file_is_refused_in_one_line(tmp_path, change, says):
    path = tmp_path / "focus.safetensors"
    save_focus_network(FocusNetwork(FocusInfo(0.25, "", {})), path)
    change(path)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_focus_network(path)
    assert "\n" not in str(caught.value)
