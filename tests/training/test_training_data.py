"""From a training config to its stream: which sources, which shares, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from af_pipeline.scenes.images import SceneImages
from af_pipeline.scenes.synthetic import CLASS_NAMES
from af_pipeline.settings.train import TrainConfig
from af_pipeline.sniper.chips import CoverRule
from af_pipeline.sniper.images import FileImages
from af_pipeline.sniper.stream import ChipStream
from af_pipeline.training.data import (
    build_stream,
    check_cache,
    chips_per_epoch,
    class_names_of,
    cover_rule,
    load_training,
)

PYRAMID = [{"factor": 0.5, "valid_range": [72, -1]}, {"factor": 2, "valid_range": [-1, 90]}]


def annotations(folder: Path, names: tuple[str, ...] = CLASS_NAMES) -> str:
    """Four images of 400 x 300 px with one 40 px box each, but for the last; a COCO file."""
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 400, "height": 300} for k in range(4)]
    boxes = [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [50, 60, 40, 40], "iscrowd": 0}
        for k in range(3)
    ]
    for box in boxes:
        box["area"] = 1600
    kinds = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": kinds}))
    for image in images:
        (folder / str(image["file_name"])).touch()
    return str(path)


def config(data: dict[str, Any], **sections: Any) -> TrainConfig:
    return TrainConfig.model_validate({"pyramid": PYRAMID, "data": data} | sections)


def stream(settings: TrainConfig) -> ChipStream:
    return build_stream(settings, load_training(settings))


def proposals(folder: Path, image_id: str, count: int) -> str:
    columns: dict[str, list[Any]] = {"image_id": [image_id] * count}
    columns |= {
        name: [value] * count for name, value in zip(("x0", "y0"), (300.0, 200.0), strict=True)
    }
    columns |= {
        name: [value] * count for name, value in zip(("x1", "y1"), (320.0, 220.0), strict=True)
    }
    pq.write_table(pa.table(columns), folder / "found.parquet")
    return str(folder / "found.parquet")


def test_files_alone(tmp_path: Path) -> None:
    settings = config({"train": annotations(tmp_path)})
    chips = stream(settings)
    assert [type(source) for source in chips.sources] == [FileImages]
    assert chips.repeats is None
    assert class_names_of(settings, load_training(settings)) == CLASS_NAMES
    assert len(chips.rule.scales) == 2
    assert (chips.rule.flips, chips.rule.colour) == ("horizontal", 0.0)


def test_drawn_scenes_are_mixed_in_or_alone(tmp_path: Path) -> None:
    scenes = {"synthetic_scenes": 3}
    mixed = stream(config({"train": annotations(tmp_path), "synthetic_share": 0.3} | scenes))
    assert [type(source) for source in mixed.sources] == [FileImages, SceneImages]
    assert mixed.shares == pytest.approx((0.7, 0.3))
    alone = stream(config({"synthetic_share": 1} | scenes))
    assert [type(source) for source in alone.sources] == [SceneImages]
    assert len(alone.sources[0]) == 3
    assert class_names_of(config(scenes), None) == CLASS_NAMES
    assert class_names_of(config(scenes, classes=["a"]), None) == ("a",)


def test_what_the_data_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no training images: set data\.train"):
        stream(config({}))
    drawn = {"synthetic_scenes": 2, "synthetic_share": 1}
    with pytest.raises(ValueError, match=r"synthetic_share=1 leaves data\.train unused"):
        stream(config({"train": annotations(tmp_path)} | drawn))
    train = annotations(tmp_path, ("cat",))
    with pytest.raises(ValueError, match=r"the data have cat: set data\.synthetic_scenes=0"):
        stream(config({"train": train, "synthetic_scenes": 2}))
    found = proposals(tmp_path, "other.jpg", 3)
    with pytest.raises(ValueError, match=r"found\.parquet has no image of data\.train"):
        stream(config({"train": train, "proposals": found}))
    with pytest.raises(ValueError, match=r"data\.proposals=nowhere cannot be read"):
        stream(config({"train": train, "proposals": "nowhere"}))


def test_the_chip_settings_arrive(tmp_path: Path) -> None:
    chips = {
        "size": 320, "stride": [0.2, 0.3], "jitter": [0.8, 1.2], "negatives": 5,
        "min_proposals": [7, 6], "focus_chips": 4, "bounds": "official",
    }  # fmt: skip
    labels = {"ignore_below": 4, "focus_below": 50, "ignore_until": 60}
    settings = config({"synthetic_scenes": 1}, chips=chips, focus_labels=labels)
    assert cover_rule(settings) == CoverRule(
        320, (0.2, 0.3), (0.8, 1.2), 5, (7, 6), 4, (4, 50), "official"
    )
    assert stream(settings).cover == cover_rule(settings)


def test_chips_of_an_epoch_by_kind(tmp_path: Path) -> None:
    train = annotations(tmp_path)
    counts = chips_per_epoch(stream(config({"train": train})))
    assert counts == {"positive": 3, "focus": 3, "negative": 2}
    found = proposals(tmp_path, "3.jpg", 30)
    mined = stream(config({"train": train, "proposals": found}))
    assert chips_per_epoch(mined) == {"positive": 3, "focus": 3, "negative": 1}
    some = chips_per_epoch(mined, most=2)  # the first and the last image stand for four
    assert some == {"positive": 2, "focus": 2, "negative": 2}


def test_rare_classes_come_again(tmp_path: Path) -> None:
    chips = stream(config({"train": annotations(tmp_path), "class_power": 1}))
    assert chips.repeats is not None
    np.testing.assert_array_equal(chips.repeats, [1] + [3] * (len(CLASS_NAMES) - 1))


def test_slots_go_through_as_many_images_as_the_cache_holds(tmp_path: Path) -> None:
    train, image = annotations(tmp_path), 3 * 400 * 300
    for cache, batch, mix in ((2.0, 8, 16), (4 * 16 * image / 1e9, 8, 4), (image / 1e9, 8, 1)):
        optim = {"global_batch": batch}
        settings = config({"train": train, "cache_gb": cache}, optim=optim)
        chips = stream(settings)
        assert (chips.slots, chips.mix) == (batch, mix)
        dataset = load_training(settings)
        assert dataset is not None
        told = "".join(check_cache(settings, dataset))
        assert ("holds 1 decoded images, but a worker is at 8" in told) == (mix == 1)
