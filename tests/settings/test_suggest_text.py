"""The dataset report: readable, ASCII, and its YAML block trains."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from af_pipeline.commands.train import OWN, main
from af_pipeline.config import load_config
from af_pipeline.data.annotations.dataset import AnnotatedDataset, AnnotatedImage
from af_pipeline.data.annotations.parquet import write_table
from af_pipeline.settings.index import IndexConfig
from af_pipeline.settings.suggest.anchors import Anchors
from af_pipeline.settings.suggest.statistics import dataset_statistics
from af_pipeline.settings.suggest.suggest import suggest
from af_pipeline.settings.suggest.text import (
    OCTAVES,
    index_block,
    report_text,
    suggest_for,
    yaml_block,
)
from af_pipeline.settings.train import TrainConfig


def dataset(sides: list[float], size: int = 2000, names: int = 1) -> AnnotatedDataset:
    """One image with a row of squares; labels go round."""
    left = np.cumsum([0.0, *sides])[:-1] % (size / 2)
    boxes = np.stack([left, left, left + sides, left + np.array(sides)], 1).astype(np.float32)
    labels = np.arange(len(sides)).astype(np.int32) % names
    crowd = np.zeros(len(sides), bool)
    image = AnnotatedImage("a.jpg", "a.jpg", size, size, boxes, labels, crowd)
    classes = tuple(f"thing {i}" for i in range(names))
    return AnnotatedDataset.of((image,), classes, tuple(range(names)))


def yaml_of(text: str) -> str:
    return text.split("-" * 80 + "\n")[1]


def load(text: str, folder: Path) -> TrainConfig:
    path = folder / "suggested.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(TrainConfig, path)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1, 1000), min_size=1, max_size=20), st.sampled_from([64, 320, 1024]))
def test_the_yaml_block_is_a_train_config(
    tmp_path_factory: pytest.TempPathFactory, sides: list[float], chip_size: int
) -> None:
    text = yaml_of(suggest_for(dataset(sides), chip_size))
    config = load(text, tmp_path_factory.mktemp("yaml"))
    assert 1 <= len(config.pyramid) <= 4
    assert config.pyramid[0].valid_range[1] == -1
    assert config.pyramid[-1].valid_range[0] == -1


def test_the_yaml_block_says_what_was_suggested(tmp_path: Path) -> None:
    statistics = dataset_statistics(dataset([12.0] * 30 + [60.0] * 30 + [400.0] * 30))
    found = suggest(statistics)
    config = load(yaml_block(found), tmp_path)
    assert list(config.pyramid) == [use.scale for use in found.scales]
    assert config.focus_labels == found.focus
    model = config.model
    assert Anchors(model.anchor_sizes, model.anchor_ratios) == found.anchors
    blocks = report_text(statistics, found).split("-" * 80 + "\n")[1:]
    assert [block.rstrip() + "\n" for block in blocks] == [yaml_block(found), index_block(found)]


@pytest.mark.parametrize(("sides", "scales"), [([12.0, 60.0, 400.0] * 9, 3), ([50.0] * 9, 1)])
def test_the_index_block_runs_what_was_trained(
    tmp_path: Path, sides: list[float], scales: int
) -> None:
    text = suggest_for(dataset(sides, size=2000 if scales > 1 else 300), 320)
    train, path = load(yaml_of(text), tmp_path), tmp_path / "index.yaml"
    path.write_text(text.split("-" * 80 + "\n")[2])
    index = load_config(IndexConfig, path)
    assert (len(index.pyramid), index.mode) == (scales, "autofocus" if scales > 1 else "whole")
    assert index.pyramid == train.pyramid
    assert len(index.focus.steps) == scales - 1


def test_suggest_takes_the_chips_of_the_recipe_it_is_pasted_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "boxes.parquet"
    write_table(dataset([12.0, 60.0, 400.0] * 9), path)
    assert main(["--suggest", "--set", f"data.train={path}"]) == 0
    own = load_config(TrainConfig, OWN)
    assert f"for chips of {own.chips.size} px" in capsys.readouterr().out
    assert main(["--suggest", "--set", f"data.train={path}", "--set", "chips.size=512"]) == 0
    assert "for chips of 512 px" in capsys.readouterr().out


def test_the_report_reads_well() -> None:
    text = suggest_for(dataset([3.0, 20.0, 20.0, 90.0, 2000.0], names=2), 320)
    assert text.isascii()
    assert "images: 1, without boxes: 0; classes: 2; boxes: 5, besides 0 of crowds" in text
    assert "the defaults'" in text
    assert "\nwarning: " in text
    bars = [line for line in text.splitlines() if line.strip().startswith(("<4 ", "16-32 ", ">="))]
    assert [line.split()[1] for line in bars] == ["1", "2", "1"]
    assert bars[1].endswith("#" * 40)
    assert max(map(len, text.splitlines())) <= 100


def test_rare_classes_share_a_row_and_odd_names_print() -> None:
    many = dataset([30.0 + i for i in range(50)], names=25)
    named = ("ünïcode", "x" * 60, *many.class_names[2:])
    text = suggest_for(AnnotatedDataset.of(many.images, named, many.category_ids), 320)
    assert "(5 others)" in text
    assert "\\xfcn\\xefcode" in text
    assert "x" * 21 + "..." in text
    assert text.isascii()


def test_octaves_are_powers_of_two() -> None:
    assert OCTAVES == (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def test_one_scale_has_no_cascade() -> None:
    text = suggest_for(dataset([50.0] * 9, size=300), 320)
    assert "no cascade" in text
    assert len(yaml.safe_load(yaml_of(text))["pyramid"]) == 1


def test_nothing_to_suggest_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no boxes"):
        suggest_for(dataset([]), 320)
    with pytest.raises(ValueError, match="no images"):
        suggest_for(AnnotatedDataset.of((), ("a",), (1,)), 320)
