"""Proposals for negative chips: a short training, the index graph, chips laid over them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from af_pipeline.commands.mine import main
from af_pipeline.sniper.images import load_proposals
from tests.helpers.training import annotations, arguments, job, steps

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("cluster"),
]
SHORT = ("mining.steps=3", "chips.min_proposals=[2, 2]")


def test_proposals_are_mined_and_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = annotations(tmp_path / "data")
    sets = (*SHORT, f"data.train={data}")
    out = tmp_path / "proposals"
    assert main([*arguments(tmp_path, *sets), "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"--set data.proposals={out / 'detections'}" in printed
    assert "negative an epoch" in printed
    assert steps(tmp_path, "tiny-proposals") == [1, 2, 3]

    found = load_proposals(str(out / "detections"))
    assert set(found) == {"0.png", "1.png"}
    images = pq.read_table(out / "images").to_pylist()
    assert all(row["pixels_processed"] == row["pixels_pyramid"] for row in images)
    labels = pq.read_table(out / "detections")["label"].unique().to_pylist()
    assert labels == ["object"]
    for boxes in found.values():
        assert 0 < len(boxes) <= 600
        assert (boxes >= 0).all()
        assert (boxes <= 256).all()
        # A box below the fine scale's range, found at the coarse one, is a proposal all the same.
        assert np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).min() < 40

    assert job(tmp_path, *sets, f"data.proposals={out / 'detections'}") == 0
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    info = json.loads((tmp_path / "tiny/tiny.json").read_text())
    assert info["training"]["config"]["data"]["proposals"] == "detections"


def test_without_data_there_is_nothing_to_mine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(tmp_path, "data.train=[]"), "--output", str(tmp_path / "out")]) == 2
    assert "no training images" in capsys.readouterr().err
